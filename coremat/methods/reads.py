"""What one new token reads of a decoder layer's weights: a method says it, operations and bytes are counted by it."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from coremat.models.shape import ATTENTION, FFN, DecoderShape

ALL = Fraction(1)


@dataclass(frozen=True, kw_only=True)
class Reads:
    """Of each matrix of a layer the share of its numbers that one token is multiplied with while decoding, and `extra`,
    the numbers of weights of the method's own that it is multiplied with besides (a predictor's)."""

    q_proj: Fraction = ALL
    k_proj: Fraction = ALL
    v_proj: Fraction = ALL
    o_proj: Fraction = ALL
    gate_proj: Fraction = ALL
    up_proj: Fraction = ALL
    down_proj: Fraction = ALL
    extra: int = 0

    @classmethod
    def of_neurons(cls, count: int, size: int, extra: int = 0) -> "Reads":
        """`count` of the `size` neurons of an FFN, and all of the attention."""
        share = Fraction(count, size)
        return cls(gate_proj=share, up_proj=share, down_proj=share, extra=extra)

    @classmethod
    def of_inputs(cls, shares: Mapping[str, Fraction]) -> "Reads":
        """Shares of the inputs of Linears by name; of the others all."""
        parts: dict[str, Any] = dict(shares)
        return cls(**parts)

    def of(self, shape: DecoderShape, *names: str) -> int:
        """How many numbers of these matrices are read."""
        return round(sum(getattr(self, name) * shape.weights(name) for name in names))

    def attention(self, shape: DecoderShape) -> int:
        return self.of(shape, *ATTENTION)

    def ffn(self, shape: DecoderShape) -> int:
        """Without `extra`."""
        return self.of(shape, *FFN)

    def layer(self, shape: DecoderShape) -> int:
        """All numbers that a token is multiplied with."""
        return self.attention(shape) + self.ffn(shape) + self.extra
