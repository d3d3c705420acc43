"""One batch of prompts while it is read: its tokens, which of them are left after each stage, its neurons."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from coremat.cost.flops import prefill_flops
from coremat.methods.base import Stage
from coremat.methods.common.knee import above_knee
from coremat.models.shape import DecoderShape
from coremat.runtime.kept_tokens import KeptTokens
from coremat.runtime.stats import SequenceStats
from coremat.timers import Stopwatch


@dataclass(eq=False)
class Segment:
    """The decoder layers from `first` on, up to the next stage, and the tokens that they see.

    positions: int64 [B, K], where an earlier or this stage counted them anew inside the decoder, else None. shift: how
    much earlier these layers' new tokens then come than the model counts, int64 [B, 1]. stage: that began it. images:
    `Prompt.images_present`, once it was asked for.
    """

    first: int
    kept: KeptTokens
    positions: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    stage: Stage | None = None
    images: torch.Tensor | None = None


@dataclass(eq=False)
class Prompt:
    """image_index: int64 [B, S], image of each token or -1; valid: bool [B, S], False for padding; draw_seeds: makes
    one seed per sequence.

    Filled in while the prompt is read: `segments`, of which `present` is the last; `neurons`, per layer, int64 [B or 1,
    m]; `curves`, for each stage that took a knee its scores and the image of each token, [B, T], on the CPU.
    """

    image_index: torch.Tensor
    valid: torch.Tensor
    draw_seeds: Callable[[], Sequence[int]]
    segments: list[Segment] = field(default_factory=list)
    neurons: dict[int, torch.Tensor] = field(default_factory=dict)
    kv_bytes_per_column: Sequence[int] = ()
    curves: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.segments = [Segment(0, KeptTokens.whole(self.valid))]
        self.selection = Stopwatch(self.valid.device)
        self.gathering = Stopwatch(self.valid.device)

    @property
    def present(self) -> Segment:
        """The tokens that the present layer sees."""
        return self.segments[-1]

    @property
    def is_pruned(self) -> bool:
        return self.present.kept.index is not None

    @cached_property
    def seeds(self) -> Sequence[int]:
        return self.draw_seeds()

    @cached_property
    def images_on_host(self) -> torch.Tensor:
        return self.image_index.cpu()

    @cached_property
    def image_tokens(self) -> list[int]:
        """Image tokens of each whole prompt."""
        return (self.images_on_host >= 0).sum(1).tolist()

    @property
    def images_present(self) -> torch.Tensor:
        """int64 [B, T]: the image of each token that is there, -1 for text and padding."""
        segment = self.present
        if segment.images is None:
            segment.images = torch.where(segment.kept.live, segment.kept.of_prompt(self.image_index), -1)
        return segment.images

    def segment_of(self, layer: int) -> Segment:
        return next(segment for segment in reversed(self.segments) if segment.first <= layer)

    def cached(self, layer: int) -> KeptTokens:
        """The tokens that a layer's cache holds after the prefill: a later stage may cut those of earlier layers."""
        own = self.segments.index(self.segment_of(layer))
        cutting = (later for later in reversed(self.segments[own + 1 :]) if later.stage and _cuts(later.stage))
        return next(cutting, self.segments[own]).kept

    # --- figures --------------------------------------------------------------------------------------------------

    def stats(self, shape: DecoderShape, neurons: Sequence[int], ffn_bytes: int) -> list[SequenceStats]:
        """neurons: that each layer uses where `self.neurons` says nothing of it; ffn_bytes: read of FFNs in a decode
        step."""
        layers = range(len(neurons))
        counts = {segment.kept: segment.kept.counts[:, 0].tolist() for segment in self.segments}
        seen = [counts[self.segment_of(layer).kept] for layer in layers]
        cached = [counts[self.cached(layer)] for layer in layers]
        kept = self.present.kept.in_prompt(self.valid.shape[1]).cpu()
        return [
            self._row(row, shape, kept[row], [s[row] for s in seen], [c[row] for c in cached], neurons, ffn_bytes)
            for row in range(len(kept))
        ]

    def _row(
        self,
        row: int,
        shape: DecoderShape,
        kept: torch.Tensor,
        seen: list[int],
        cached: list[int],
        neurons: Sequence[int],
        ffn_bytes: int,
    ) -> SequenceStats:
        image = self.images_on_host[row] >= 0
        own, rows = kept[image], len(self.valid)
        return SequenceStats(
            prompt_tokens=int(self.valid[row].sum()),
            image_tokens=int(image.sum()),
            image_tokens_kept=int(own.sum()),
            kept=tuple(own.nonzero()[:, 0].tolist()),
            neurons=shape.ffn,
            neurons_kept=tuple(
                self.neurons[layer].shape[1] if layer in self.neurons else own for layer, own in enumerate(neurons)
            ),
            tokens_per_layer=tuple(seen),
            cached_per_layer=tuple(cached),
            kv_bytes=sum(map(int.__mul__, cached, self.kv_bytes_per_column)),
            prefill_flops=prefill_flops(shape, seen),
            ffn_bytes_per_token=ffn_bytes,
            selection_seconds=self.selection.seconds / rows,
            gather_seconds=self.gathering.seconds / rows,
            knees_differ=_any(_knees_differ(scores[row][images[row] >= 0]) for scores, images in self.curves),
        )


def _cuts(stage: Stage) -> bool:
    return stage.after == 0 or stage.earlier_cache == "cut"


def _any(answers: Iterable[bool | None]) -> bool | None:
    known = [answer for answer in answers if answer is not None]
    return any(known) if known else None


def _knees_differ(scores: torch.Tensor) -> bool | None:
    return bool((above_knee(scores) != above_knee(scores, signed=True)).any()) if len(scores) else None
