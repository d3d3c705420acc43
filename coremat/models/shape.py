"""The sizes of a decoder that operations and bytes are counted from."""

from dataclasses import dataclass
from typing import Any

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FFN = ("gate_proj", "up_proj", "down_proj")
LINEARS = (*ATTENTION, *FFN)  # the matrices of a decoder layer


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

    def inputs(self, name: str) -> int:
        """Inputs of the matrix of a layer that has this name (of `LINEARS`)."""
        return {"o_proj": self.attention, "down_proj": self.ffn}.get(name, self.hidden)

    def weights(self, name: str) -> int:
        """Numbers of that matrix: it has `hidden` on the one side, and what it is named after on the other."""
        other = {"q_proj": self.attention, "o_proj": self.attention, "k_proj": self.key_value, "v_proj": self.key_value}
        return self.hidden * other.get(name, self.ffn)

    @property
    def attention_weights(self) -> int:
        """Of the four projections of a layer."""
        return self.hidden * (2 * self.attention + 2 * self.key_value)

    @property
    def layer_weights(self) -> int:
        """Of all seven matrices of a layer."""
        return self.attention_weights + self.neuron_weights * self.ffn

    @property
    def neuron_weights(self) -> int:
        """Of one neuron of a gated FFN: its rows of gate and up, its column of down."""
        return 3 * self.hidden

    @property
    def head_weights(self) -> int:
        return self.hidden * self.vocabulary
