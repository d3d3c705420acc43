"""What one batch of prompts showed while it was read: its tokens, which of them stay, its neurons, and the figures."""

from copy import copy
from dataclasses import dataclass, field
from functools import cached_property

import torch

from coremat.config import SparsityConfig
from coremat.core_tokens import above_knee
from coremat.flops import DecoderShape, prefill_flops
from coremat.selection import keep_tokens
from coremat.stopwatch import Stopwatch


@dataclass(frozen=True)
class SequenceStats:
    """One sequence of the last prefill.

    kept: which of its image tokens stayed (0-based among them); neurons_kept: per decoder layer;
    kv_bytes: its own columns in all layers after the prefill; prefill_flops: `coremat.flops`, with its own tokens;
    selection_seconds and gather_seconds: its share of the batch's; knees_differ: whether the signed and the unsigned
    knee of its core-neuron counts keep different tokens (None where no counts were taken).
    """

    prompt_tokens: int
    image_tokens: int
    image_tokens_kept: int
    kept: tuple[int, ...]
    neurons: int
    neurons_kept: tuple[int, ...]
    kv_bytes: int
    prefill_flops: int
    selection_seconds: float
    gather_seconds: float
    knees_differ: bool | None


@dataclass(frozen=True)
class Columns:
    """Where the tokens that stay are. index: int64 [B, K], live: bool [B, K]: for each row the columns that stay,
    real ones ascending at the end, fillers (not live) before them. ragged: whether there are fillers to hide."""

    index: torch.Tensor
    live: torch.Tensor
    ragged: bool

    @classmethod
    def of(cls, keep: torch.Tensor, device: torch.device) -> "Columns":
        """Every row gets as many columns as the fullest row of `keep` (bool [B, S], on the CPU) needs."""
        width = int(keep.sum(1).max())
        # Stable and False first: what stays ends up last, in its own order, after dropped columns where there is room.
        index = keep.to(torch.uint8).argsort(dim=1, stable=True)[:, -width:]
        live = keep.gather(1, index)
        return cls(index.to(device), live.to(device), ragged=not bool(live.all()))


def on_host(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Tensors of one shape on the CPU, by one transfer: whole numbers up to 2^53 and all floats pass it unchanged."""
    if tensors[0].device.type == "cpu":
        return list(tensors)
    moved = torch.stack([t.double() for t in tensors]).cpu()
    return [row.to(t.dtype) for row, t in zip(moved, tensors, strict=True)]


@dataclass
class Prompt:
    """visual: int64 [B, S], image of each token or -1; valid: bool [B, S], False for padding; seeds: one per sequence.

    Filled in while the prompt is read: `counts` int64 [B, S], core neurons that each token activates at the choosing
    layer; `keep` bool [B, S], on the CPU, and `columns` by `narrow_to`; `neurons`, per layer, int64 [B or 1, m].
    """

    visual: torch.Tensor
    valid: torch.Tensor
    seeds: list[int]
    columns: Columns | None = None
    counts: torch.Tensor | None = None
    neurons: dict[int, torch.Tensor] = field(default_factory=dict)
    kv_bytes_per_column: int = 0
    neurons_of_each_token: int | None = None

    def __post_init__(self) -> None:
        self.keep = self.valid
        self.selection = Stopwatch(self.valid.device)
        self.gathering = Stopwatch(self.valid.device)

    @cached_property
    def hides(self) -> bool:
        """Whether the model's own mask, made for the whole prompt, no longer fits the columns that are there."""
        return self.columns is not None and (self.columns.ragged or not bool(self.valid.all()))

    def narrow_to(self, config: SparsityConfig, counts: torch.Tensor, scores: torch.Tensor | None) -> None:
        """Choose on the CPU by `scores` [B, S] (None: random ones): this is where the device is waited for."""
        given = [counts, self.visual, self.valid, *([] if scores is None else [scores])]
        self.counts, visual, valid, *rest = on_host(*given)
        self.keep_only(keep_tokens(config, rest[0] if rest else None, self.counts, visual, valid, self.seeds))

    def keep_only(self, keep: torch.Tensor) -> None:
        """keep: bool [B, S], on the CPU."""
        self.keep, self.columns = keep, Columns.of(keep, self.valid.device)

    def there(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`valid` and `visual` [B, T] of the columns that the present layer sees."""
        if self.columns is None:
            return self.valid, self.visual
        return self.columns.live, self.visual.gather(1, self.columns.index)

    def stats(self, shape: DecoderShape, layers: int, full_layers: int) -> list[SequenceStats]:
        here = copy(self)
        here.visual, here.valid, here.keep = self.visual.cpu(), self.valid.cpu(), self.keep.cpu()
        return [here._row(row, shape, layers, full_layers) for row in range(len(here.valid))]

    def _row(self, row: int, shape: DecoderShape, layers: int, full_layers: int) -> SequenceStats:
        image = self.visual[row] >= 0
        kept = self.keep[row][image]
        prompt, short = int(self.valid[row].sum()), int(self.keep[row].sum())
        seen = [prompt] * full_layers + [short] * (layers - full_layers)
        rows = len(self.valid)
        return SequenceStats(
            prompt_tokens=prompt,
            image_tokens=int(image.sum()),
            image_tokens_kept=int(kept.sum()),
            kept=tuple(kept.nonzero()[:, 0].tolist()),
            neurons=shape.ffn,
            neurons_kept=tuple(self._neurons(layer, shape.ffn) for layer in range(layers)),
            kv_bytes=short * self.kv_bytes_per_column,
            prefill_flops=prefill_flops(shape, seen),
            selection_seconds=self.selection.seconds / rows,
            gather_seconds=self.gathering.seconds / rows,
            knees_differ=None if self.counts is None else _knees_differ(self.counts[row][image]),
        )

    def _neurons(self, layer: int, every: int) -> int:
        if self.neurons_of_each_token is not None:
            return self.neurons_of_each_token
        return self.neurons[layer].shape[1] if layer in self.neurons else every


def _knees_differ(counts: torch.Tensor) -> bool | None:
    return bool((above_knee(counts) != above_knee(counts, signed=True)).any()) if len(counts) else None
