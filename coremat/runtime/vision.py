"""Image tokens chosen before the decoder: at the projector, where the vision tower shows what matters, or at the
decoder's input, where an image is a list of embeddings.

What a method keeps may hold something new (merged or pooled vectors); the other places leave the sequence before layer
0. A sequence's budget is shared out over its images by their size.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from coremat.errors import UnsupportedError
from coremat.hooks import Hooks
from coremat.methods.base import Method, Reduction, Stage
from coremat.methods.budget import budget, share_out
from coremat.methods.views import ImageView, TowerView
from coremat.models.adapter import Adapter
from coremat.models.grids import Grids
from coremat.runtime.prompt import Prompt
from coremat.runtime.reductions import check_reduction


@dataclass(frozen=True)
class ImageShare:
    """One image or video of a prompt: its tokens, how many of them stay (None: the method's own rule), its grids."""

    tokens: int
    keep: int | None
    grids: Grids


class BeforeDecoder:
    """What one model's images show on their way to the decoder, and which of their places stay."""

    def __init__(self, adapter: Adapter, method: Method, stage: Stage, state: Any) -> None:
        self.adapter, self.method, self.stage, self._state = adapter, method, stage, state
        self.at_projector = method.takes("before_projector")
        self._shares: list[ImageShare] = []  # of the prompts that were announced, in the order of their images
        self._tower: dict[tuple[int, str], torch.Tensor] = {}
        self._class_token: torch.Tensor | None = None
        self._reductions: list[Reduction] = []
        if self.at_projector and adapter.vision_layers is None:
            raise UnsupportedError(
                f"{method.label} reads how a class token attends to one whole image, and "
                f"{type(adapter.model).__name__} has no such tower; accepted here: methods that choose behind the "
                "projector or in the decoder."
            )

    def install(self, hooks: Hooks) -> None:
        if not self.at_projector:
            return
        layers = list(self.adapter.vision_layers or ())
        for number in dict.fromkeys(self.method.tower_layers()):
            if not -len(layers) <= number < len(layers):
                raise UnsupportedError(
                    f"tower_layer is {number}, and the vision tower has {len(layers)} layers; "
                    f"accepted: {-len(layers)} to {len(layers) - 1}."
                )
            hooks.before(layers[number].self_attn, self._see_attention(number))
        hooks.after(layers[self.adapter.feature_layer], self._see_class_token)
        hooks.before(self.adapter.vision[1], self._reduce)

    def announce(self, input_ids: torch.Tensor, inputs: Mapping[str, Any]) -> None:
        """The prompts whose images come next: int64 [B, S], and the arguments that came with them."""
        index = self.adapter.visual_index(input_ids).cpu()
        grids = iter(self.adapter.image_grids(input_ids, inputs))
        self._shares = [share for row in index for share in self._shares_of(row, grids)]

    def _shares_of(self, index: torch.Tensor, grids: Iterator[Grids]) -> list[ImageShare]:
        """index: [S], the image of each token of one prompt."""
        sizes = index[index >= 0].bincount().tolist()
        if isinstance(self.stage.keep, str) or not sizes:
            keeps: Sequence[int | None] = [None] * len(sizes)
        else:
            keeps = share_out(max(len(sizes), budget(self.stage.keep, sum(sizes))), sizes, least=1)
        return [ImageShare(size, keep, next(grids)) for size, keep in zip(sizes, keeps, strict=True)]

    # --- at the projector ---------------------------------------------------------------------------------------

    def _see_attention(self, number: int) -> Any:
        def hook(module: Any, args: tuple, kwargs: dict) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            with torch.no_grad():
                for name in ("queries", "keys"):
                    projected = getattr(module, f"{name[0]}_proj")(hidden)
                    self._tower[number, name] = projected.unflatten(-1, (module.num_heads, -1))

        return hook

    def _see_class_token(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        self._class_token = hidden[:, 0]

    def _reduce(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Choose and merge, image by image; what the projector gets has as many places as ever."""
        features = args[0]
        if len(features) != len(self._shares):
            raise self._mismatch(len(self._shares), len(features))
        with torch.no_grad():
            self._reductions = [
                self._checked(self.method.before_projector(view, share.keep), share, view.features)
                for view, share in zip(self._views(features), self._shares, strict=True)
            ]
        pairs = zip(features, self._reductions, strict=True)
        merged = [own if reduction.features is None else reduction.features for own, reduction in pairs]
        return (torch.stack(merged).to(features.dtype), *args[1:]), kwargs

    def _views(self, features: torch.Tensor) -> Iterator[ImageView]:
        for number, own in enumerate(features):
            layers = {layer for layer, _ in self._tower}
            tower = {
                n: TowerView(self._tower[n, "queries"][number], self._tower[n, "keys"][number], len(own))
                for n in layers
            }
            token = None if self._class_token is None else self._class_token[number]
            yield ImageView(own, self._shares[number].grids, token, tower, self._state)

    def _checked(self, reduction: Reduction, share: ImageShare, features: torch.Tensor) -> Reduction:
        """UnsupportedError for a reduction that is none of this image, or is above its budget."""
        check_reduction(self.method, reduction, features)
        name, kept = self.method.label, int(reduction.keep.sum())
        if kept < 1 or (share.keep is not None and kept > share.keep):
            raise UnsupportedError(f"{name} keeps {kept} tokens of an image; accepted: 1 to {share.keep}, its budget.")
        return reduction

    # --- at the decoder's input ------------------------------------------------------------------------------------

    def choose(self, prompt: Prompt, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What stays, bool [B, S], on the CPU, and the embeddings [B, S, H] that the places hold now."""
        images, valid = prompt.images_on_host, prompt.valid.cpu()
        keep, changed = valid & (images < 0), embeddings
        for place, reduction in self._placed(images, embeddings):
            keep[place] = reduction.keep.cpu()
            if not self.at_projector and reduction.features is not None:
                changed = changed if changed is not embeddings else embeddings.clone()
                changed[place] = reduction.features.to(changed.dtype)
        keep[:, -1] |= valid[:, -1]
        return keep, changed

    def _placed(
        self, images: torch.Tensor, embeddings: torch.Tensor
    ) -> Iterator[tuple[tuple[torch.Tensor, torch.Tensor], Reduction]]:
        """Each image's places (row, columns), with what is to be done there. Beams repeat the rows of a prompt."""
        counts = (images.amax(1) + 1).tolist()
        beams = self._beams(sum(counts))
        for row, count in enumerate(counts):
            before = sum(counts[: row - row % beams : beams])
            for number in range(count):
                columns = (images[row] == number).nonzero()[:, 0]
                place = torch.full_like(columns, row), columns
                yield place, self._reduction(before + number, embeddings[place])

    def _reduction(self, image: int, own: torch.Tensor) -> Reduction:
        if self.at_projector:
            return self._reductions[image]
        share = self._shares[image]
        view = ImageView(own, share.grids, state=self._state)
        return self._checked(self.method.before_decoder(view, share.keep), share, own)

    def _beams(self, images: int) -> int:
        """How many rows each prompt has, told by how often the announced images are there."""
        known = len(self._reductions) if self.at_projector else len(self._shares)
        if not images:
            return 1
        beams, rest = divmod(images, known or images + 1)
        if rest or not beams:
            raise self._mismatch(images, known)
        return beams

    def _mismatch(self, in_prompts: int, through: int) -> UnsupportedError:
        return UnsupportedError(
            f"{in_prompts} images are in the prompts and {through} came through the projector; "
            "accepted: as many, in one batch."
        )
