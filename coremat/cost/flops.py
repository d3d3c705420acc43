"""Arithmetic of a decoder, by formula: 2 operations per multiply-add, decoder and output head only."""

from collections.abc import Sequence

from coremat.models.shape import DecoderShape

CONVENTION = "2*MAC, decoder and the last token's output head"


def layer_flops(shape: DecoderShape, tokens: int, weights: int | None = None) -> int:
    """One layer: projections and gated FFN, of whose numbers a token meets so many `weights` (None: all), scores and
    weighted sum over all pairs of tokens."""
    met = shape.layer_weights if weights is None else weights
    return 2 * tokens * met + 4 * tokens * tokens * shape.attention


def prefill_flops(shape: DecoderShape, tokens_per_layer: Sequence[int]) -> int:
    """A whole prefill; `tokens_per_layer` says how many tokens each layer sees."""
    return sum(layer_flops(shape, tokens) for tokens in tokens_per_layer) + 2 * shape.head_weights


def decode_flops(shape: DecoderShape, lengths: Sequence[int], weights: Sequence[int] | None = None) -> int:
    """One decode step of one sequence. Per layer: lengths, the keys that the token attends to, its own among them;
    weights, the numbers that the token is multiplied with (all, if left out)."""
    used = [shape.layer_weights] * len(lengths) if weights is None else weights
    past = sum(4 * (length - 1) * shape.attention for length in lengths)
    return sum(layer_flops(shape, 1, own) for own in used) + past + 2 * shape.head_weights
