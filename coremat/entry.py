"""Image tokens chosen before the decoder: at the projector, where the vision tower shows what matters, or at the
decoder's door, where an image is a list of embeddings.

What a method keeps may hold something new (merged or pooled vectors); the other places leave the sequence before layer
0. The methods themselves are pure functions in `coremat.methods`.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from coremat.config import SparsityConfig
from coremat.errors import UnsupportedError
from coremat.methods import divprune, pooling, prumerge, uniform, visionzip
from coremat.methods.reduction import Reduction, VisionView
from coremat.models import Adapter
from coremat.prompt import Prompt

AT_PROJECTOR: dict[str, tuple[int, Callable[[VisionView, Any], Reduction]]] = {
    "prumerge": (prumerge.LAYER, prumerge.prumerge),
    "prumerge+": (prumerge.LAYER, lambda view, budget: prumerge.prumerge(view, budget, plus=True)),
    "visionzip": (visionzip.LAYER, visionzip.visionzip),
}
Grid = tuple[int, int] | None


def _uniform(embeddings: torch.Tensor, grid: Grid, budget: Any) -> Reduction:
    return Reduction(uniform.uniform(grid or (1, len(embeddings)), budget).to(embeddings.device), embeddings)


def _divprune(embeddings: torch.Tensor, grid: Grid, budget: Any) -> Reduction:
    return Reduction(divprune.divprune(embeddings, budget), embeddings)


AT_DOOR: dict[str, Callable[[torch.Tensor, Grid, Any], Reduction]] = {
    "uniform": _uniform,
    "divprune": _divprune,
    "pooling": lambda own, grid, budget: pooling.average_pooling(own, grid or (1, len(own)), budget),
}


class Entry:
    """What one model's images show on their way to the decoder, and which of their places stay."""

    def __init__(self, adapter: Adapter, config: SparsityConfig) -> None:
        self.adapter, self.config = adapter, config
        self._seen: dict[str, torch.Tensor] = {}
        self._reductions: list[Reduction] = []
        if config.token_score in AT_PROJECTOR and adapter.vision_layers is None:
            raise UnsupportedError(
                f"{config.token_score} reads how a class token attends to one whole image, and "
                f"{type(adapter.model).__name__} has no such tower; accepted here: {', '.join(AT_DOOR)}, and what "
                "chooses in the decoder."
            )

    def install(self, undo: ExitStack) -> None:
        if self.config.token_score not in AT_PROJECTOR:
            return
        layers = list(self.adapter.vision_layers or ())
        layer, _ = AT_PROJECTOR[self.config.token_score]
        attention, features = layers[layer].self_attn, self.adapter.feature_layer
        _, projector = self.adapter.vision
        add = undo.callback
        add(attention.register_forward_pre_hook(self._see_attention, with_kwargs=True).remove)
        add(layers[features].register_forward_hook(self._see_class_token).remove)
        add(projector.register_forward_pre_hook(self._reduce).remove)

    # --- at the projector ---------------------------------------------------------------------------------------

    def _see_attention(self, module: Any, args: tuple, kwargs: dict) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        with torch.no_grad():
            for name in ("queries", "keys"):
                projected = getattr(module, f"{name[0]}_proj")(hidden)
                self._seen[name] = projected.unflatten(-1, (module.num_heads, -1))

    def _see_class_token(self, module: nn.Module, args: tuple, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        self._seen["cls"] = hidden[:, 0]

    def _reduce(self, module: nn.Module, args: tuple) -> tuple:
        """Choose and merge, image by image; what the projector gets has as many places as ever."""
        features, (_, reduce) = args[0], AT_PROJECTOR[self.config.token_score]
        with torch.no_grad():
            self._reductions = [reduce(view, self.config.tokens) for view in self._views(features)]
        merged = [reduction.features.to(features.dtype) for reduction in self._reductions]
        return (torch.stack(merged), *args[1:])

    def _views(self, features: torch.Tensor) -> Iterator[VisionView]:
        seen = self._seen
        for number, own in enumerate(features):
            rows = {name: seen[name][number] for name in ("cls", "queries", "keys")}
            yield VisionView(features=own, grid=_square(len(own)), **rows)

    # --- at the decoder's door ------------------------------------------------------------------------------------

    def choose(self, prompt: Prompt, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What stays, bool [B, S], on the CPU, and the embeddings [B, S, H] that the places hold now."""
        visual = prompt.visual.cpu()
        keep, held = prompt.valid.cpu() & (visual < 0), embeddings
        for place, reduction in self._placed(visual, embeddings):
            keep[place] = reduction.keep.cpu()
            if self.config.token_score in AT_DOOR and reduction.features is not None:
                held = held if held is not embeddings else embeddings.clone()
                held[place] = reduction.features.to(held.dtype)
        keep[:, -1] |= prompt.valid[:, -1].cpu()
        return keep, held

    def _placed(
        self, visual: torch.Tensor, embeddings: torch.Tensor
    ) -> Iterator[tuple[tuple[torch.Tensor, torch.Tensor], Reduction]]:
        """Each image's places (row, columns), with what is to be done there. Beams repeat the rows of a prompt."""
        counts = (visual.amax(1) + 1).tolist()
        beams = self._beams(sum(counts))
        for row, count in enumerate(counts):
            before = sum(counts[: row - row % beams : beams])
            for number in range(count):
                columns = (visual[row] == number).nonzero()[:, 0]
                place = torch.full_like(columns, row), columns
                yield place, self._reduction(before + number, embeddings[place])

    def _reduction(self, image: int, own: torch.Tensor) -> Reduction:
        if self.config.token_score in AT_DOOR:
            return AT_DOOR[self.config.token_score](own, _square(len(own)), self.config.tokens)
        return self._reductions[image]

    def _beams(self, images: int) -> int:
        """How many rows each prompt has, told by how often the images that came through the projector are there."""
        if self.config.token_score in AT_DOOR or not images:
            return 1
        beams, rest = divmod(images, len(self._reductions) or images + 1)
        if rest or not beams:
            raise UnsupportedError(
                f"{images} images are in the prompts and {len(self._reductions)} came through the projector; "
                "accepted: as many, in one batch."
            )
        return beams


def _square(places: int) -> Grid:
    side = int(places**0.5)
    return (side, side) if side * side == places else None
