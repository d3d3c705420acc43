"""The sizes of a decoder that operations and bytes are counted from."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DecoderShape:
    """`attention` and `key_value` are heads times head size; `ffn`: neurons of a layer."""

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
