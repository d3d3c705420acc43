"""Image tokens chosen before the decoder: by the size of the picture, before the vision tower; at the projector, where
the tower shows what matters; or at the decoder's input, where an image is a list of embeddings.

What a method keeps may hold something new (merged or pooled vectors); the other places leave the sequence before layer
0. A sequence's budget is shared out over its images by their size.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from coremat.errors import UnsupportedError
from coremat.hooks import Hooks
from coremat.methods.base import Method, Reduction, Stage
from coremat.methods.budget import budget, share_out
from coremat.methods.views import ImageView, Question, TowerView
from coremat.models.adapter import Adapter
from coremat.models.grids import Grids, Tile, images_of
from coremat.runtime.prompt import Prompt
from coremat.runtime.questions import Questions, question_embeddings, questions_of
from coremat.runtime.reductions import check_budget
from coremat.runtime.smaller_views import SmallerViews
from coremat.runtime.tiles import placed, reduce_tiles
from coremat.timers import Stopwatch


@dataclass(frozen=True)
class ImageShare:
    """One image or video of a prompt: its placeholder id, its tokens, how many of them stay (None: the method's own
    rule), its grids, what is asked about it, and, for methods before the projector, what the tower sees of it."""

    kind: int
    tokens: int
    keep: int | None
    grids: Grids
    question: Question
    tiles: Sequence[Tile] = ()


def at_projector(method: Method) -> bool:
    """Whether tokens that are chosen before the decoder are chosen where the vision tower shows what matters."""
    return method.takes("before_projector") and not method.takes("smaller_grids")


def check_tower(method: Method, adapter: Adapter) -> None:
    """UnsupportedError for a tower that does not show it."""
    if at_projector(method) and adapter.vision_layers is None:
        raise UnsupportedError(
            f"{method.label} reads how a class token attends to the places of an image, and "
            f"{type(adapter.model).__name__} has no such tower; accepted here: methods that choose behind the "
            "projector or in the decoder."
        )


class BeforeDecoder:
    """What one model's images show on their way to the decoder, and which of their places stay. state: what the
    method's `setup` returned."""

    def __init__(self, adapter: Adapter, method: Method, stage: Stage, state: Any) -> None:
        self.adapter, self.method, self.stage, self._state = adapter, method, stage, state
        self._smaller = SmallerViews(adapter, method) if method.takes("smaller_grids") else None
        self.at_projector = at_projector(method)
        self._shares: list[ImageShare] = []  # of the prompts that were announced, in the order of their images
        self._tower: dict[tuple[int, str], torch.Tensor] = {}
        self._class_token: torch.Tensor | None = None
        self._reductions: list[Reduction] = []
        self.watch = Stopwatch(adapter.model.device)  # of what is chosen at the projector

    def install(self, hooks: Hooks) -> None:
        if self._smaller is not None:
            self._smaller.install(hooks)
        if not self.at_projector:
            return
        layers = list(self.adapter.vision_layers or ())
        for number in dict.fromkeys(self.method.tower_layers()):
            if not -len(layers) <= number < len(layers):
                raise UnsupportedError(
                    f"tower_layer is {number}, and the vision tower has {len(layers)} layers; "
                    f"accepted: {-len(layers)} to {len(layers) - 1}."
                )
            self._see_attention(hooks, number, layers[number].self_attn)
        hooks.after(layers[self.adapter.feature_layer], self._see_class_token)
        hooks.before(self.adapter.vision[1], self._reduce)

    def announce(self, input_ids: torch.Tensor, inputs: Mapping[str, Any], questions: Questions | None = None) -> None:
        """The prompts whose images come next: int64 [B, S], the arguments that came with them, and what they ask."""
        index, ids = self.adapter.visual_index(input_ids).cpu(), input_ids.cpu()
        grids = self.adapter.image_grids(input_ids, inputs)
        seen = self.adapter.image_tiles(input_ids, inputs) if self.at_projector else [()] * len(grids)
        images = zip(grids, seen, strict=True)
        asked = questions_of(questions, input_ids, index, inputs.get("attention_mask"))
        rows = zip(ids, index, asked, strict=True)
        self._shares = [share for own, place, asks in rows for share in self._shares_of(own, place, images, asks)]
        if self._smaller is not None:
            self._announce_sizes(self._smaller, inputs)

    def _announce_sizes(self, smaller: SmallerViews, inputs: Mapping[str, Any]) -> None:
        keeps = [share.tokens if share.keep is None else share.keep for share in self._shares]
        kinds = [share.kind for share in self._shares]
        smaller.announce([share.grids for share in self._shares], kinds, keeps, inputs)

    def _shares_of(
        self,
        ids: torch.Tensor,
        index: torch.Tensor,
        images: Iterator[tuple[Grids, Sequence[Tile]]],
        question: Question,
    ) -> list[ImageShare]:
        """ids, index: [S], the tokens of one prompt and the image of each; images: the grids and the tiles of each."""
        kinds = list(images_of(ids[None], index[None]))
        sizes = [size for _, size in kinds]
        if isinstance(self.stage.keep, str) or not sizes:
            keeps: Sequence[int | None] = [None] * len(sizes)
        else:
            keeps = share_out(max(len(sizes), budget(self.stage.keep, sum(sizes))), sizes, least=1)
        shares = []
        for (kind, size), keep in zip(kinds, keeps, strict=True):
            grids, tiles = next(images)
            shares.append(ImageShare(kind, size, keep, grids, question, tiles))
        return shares

    # --- at the projector ---------------------------------------------------------------------------------------

    def _see_attention(self, hooks: Hooks, number: int, attention: Any) -> None:
        def keep(name: str) -> Any:
            def hook(module: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> None:
                self._tower[number, name] = output.detach().unflatten(-1, (attention.num_heads, -1))

            return hook

        hooks.after(attention.q_proj, keep("queries"))
        hooks.after(attention.k_proj, keep("keys"))

    def _see_class_token(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        self._class_token = hidden[:, 0]

    def _reduce(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Choose and merge, image by image; what the projector gets has as many places as ever."""
        features, tiles = args[0], sum(len(share.tiles) for share in self._shares)
        if len(features) != tiles:
            raise self._mismatch(tiles, len(features))
        merged, first = features.clone(), 0
        self._reductions = []
        with self.watch.running(), torch.no_grad():
            for share in self._shares:
                numbers = range(first, first + len(share.tiles))
                views = [self._view(module, features, n, t, share) for n, t in zip(numbers, share.tiles, strict=True)]
                own = reduce_tiles(self.method, views, share.keep)
                for number, tile, reduction in zip(numbers, share.tiles, own, strict=True):
                    if reduction.features is not None:
                        merged[number, tile.patches] = reduction.features.to(merged.dtype)
                self._reductions.append(Reduction(placed(own, share.tiles, share.tokens, share.keep)))
                first = numbers.stop
        return (merged, *args[1:]), kwargs

    def _view(
        self, projector: nn.Module, features: torch.Tensor, number: int, tile: Tile, share: ImageShare
    ) -> ImageView:
        """features: [tiles, places, C], of all images; number: of this tile among them."""
        places = features.shape[1]
        visible = None if len(tile.patches) == places else tile.patches.to(features.device)
        tower = {
            layer: TowerView(self._tower[layer, "queries"][number], self._tower[layer, "keys"][number], places, visible)
            for layer, _ in self._tower
        }
        return ImageView(
            features[number] if visible is None else features[number, visible],
            tile.grids,
            None if self._class_token is None else self._class_token[number],
            tower,
            self._state,
            share.question,
            tile.area,
            lambda own: projector.forward(own[None])[0],  # not the call, in the hook of which this is
        )

    def _checked(self, reduction: Reduction, share: ImageShare, features: torch.Tensor) -> Reduction:
        check_budget(self.method, reduction, features, share.keep)
        return reduction

    # --- at the decoder's input ------------------------------------------------------------------------------------

    def choose(self, prompt: Prompt, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What stays, bool [B, S], on the CPU, and the embeddings [B, S, H] that the places hold now."""
        images, valid = prompt.images_on_host, prompt.valid.cpu()
        keep, changed = valid & (images < 0), embeddings
        for place, reduction in self._placed(images, valid, embeddings):
            keep[place] = reduction.keep.cpu()
            if not self.at_projector and reduction.features is not None:
                changed = changed if changed is not embeddings else embeddings.clone()
                changed[place] = reduction.features.to(changed.dtype)
        keep[:, -1] |= valid[:, -1]
        return keep, changed

    def _placed(
        self, images: torch.Tensor, valid: torch.Tensor, embeddings: torch.Tensor
    ) -> Iterator[tuple[tuple[torch.Tensor, torch.Tensor], Reduction]]:
        """Each image's places (row, columns), with what is to be done there. Beams repeat the rows of a prompt."""
        counts = (images.amax(1) + 1).tolist()
        beams = self._beams(sum(counts))
        for row, count in enumerate(counts):
            before = sum(counts[: row - row % beams : beams])
            if count and not self.at_projector:  # one question for all images of a sequence
                own = partial(question_embeddings, embeddings[row], images[row], valid[row])
                self._shares[before].question.add(embeddings=own)
            for number in range(count):
                columns = (images[row] == number).nonzero()[:, 0]
                place = torch.full_like(columns, row), columns
                yield place, self._reduction(before + number, embeddings[place])

    def _reduction(self, image: int, own: torch.Tensor) -> Reduction:
        if self.at_projector:
            return self._reductions[image]
        share = self._shares[image]
        if self._smaller is not None:
            return self._checked(Reduction(self._smaller.kept[image]), share, own)
        view = ImageView(own, share.grids, state=self._state, question=share.question)
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
