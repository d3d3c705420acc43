"""Arithmetic of a decoder prefill, by formula: 2 operations per multiply-add, decoder and output head only."""

from collections.abc import Sequence
from dataclasses import dataclass

CONVENTION = "2*MAC, decoder and the last token's output head"


@dataclass(frozen=True)
class DecoderShape:
    """Sizes that the formula needs. `attention` and `key_value` are heads times head size."""

    hidden: int
    attention: int
    key_value: int
    ffn: int
    vocabulary: int

    def layer_flops(self, tokens: int, ffn: int | None = None) -> int:
        """One layer: projections, scores and weighted sum over all pairs of tokens, gated FFN of `ffn` neurons."""
        projections = self.hidden * (2 * self.attention + 2 * self.key_value)
        neurons = 3 * self.hidden * (self.ffn if ffn is None else ffn)
        return 2 * tokens * (projections + neurons) + 4 * tokens * tokens * self.attention


def prefill_flops(shape: DecoderShape, tokens_per_layer: Sequence[int]) -> int:
    """A whole prefill; `tokens_per_layer` says how many tokens each layer sees."""
    return sum(shape.layer_flops(t) for t in tokens_per_layer) + 2 * shape.hidden * shape.vocabulary
