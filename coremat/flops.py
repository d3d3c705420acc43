"""Arithmetic of a decoder, by formula: 2 operations per multiply-add, decoder and output head only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CONVENTION = "2*MAC, decoder and the last token's output head"


@dataclass(frozen=True)
class DecoderShape:
    """Sizes that the formula needs. `attention` and `key_value` are heads times head size."""

    hidden: int
    attention: int
    key_value: int
    ffn: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> "DecoderShape":
        """From the text part of a Hugging Face config."""
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            hidden=config.hidden_size,
            attention=size * config.num_attention_heads,
            key_value=size * config.num_key_value_heads,
            ffn=config.intermediate_size,
            vocabulary=config.vocab_size,
        )

    @property
    def attention_weights(self) -> int:
        """Of the four projections of a layer."""
        return self.hidden * (2 * self.attention + 2 * self.key_value)

    @property
    def neuron_weights(self) -> int:
        """Of one neuron of a gated FFN: its rows of gate and up, its column of down."""
        return 3 * self.hidden

    @property
    def head_weights(self) -> int:
        return self.hidden * self.vocabulary

    def layer_flops(self, tokens: int, ffn: int | None = None) -> int:
        """One layer: projections, scores and weighted sum over all pairs of tokens, gated FFN of `ffn` neurons."""
        neurons = self.neuron_weights * (self.ffn if ffn is None else ffn)
        return 2 * tokens * (self.attention_weights + neurons) + 4 * tokens * tokens * self.attention


def prefill_flops(shape: DecoderShape, tokens_per_layer: Sequence[int]) -> int:
    """A whole prefill; `tokens_per_layer` says how many tokens each layer sees."""
    return sum(shape.layer_flops(t) for t in tokens_per_layer) + 2 * shape.head_weights


def decode_flops(shape: DecoderShape, layers: int, length: int, ffn: int | None = None) -> int:
    """One decode step of one sequence. `length`: the keys that the token attends to, its own among them."""
    past = 4 * (length - 1) * shape.attention
    return layers * (shape.layer_flops(1, ffn) + past) + 2 * shape.head_weights
