"""The figures of one sequence of the last prompt."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SequenceStats:
    """kept: which of its image tokens stayed to the end (0-based among them); neurons_kept: per decoder layer;
    tokens_per_layer, cached_per_layer: its own tokens that each layer saw in the prefill, and that its cache holds
    after it; kv_bytes: of these, in all layers; prefill_flops: `cost.flops`, with its own tokens;
    ffn_bytes_per_token: weights of FFNs that a decode step of this sequence alone reads, those that the method adds in
    order to choose among them (`Method.reads`); selection_seconds and gather_seconds: its share of the batch's;
    knees_differ: whether the signed and the unsigned knee keep different tokens (None where no knee was asked for).
    """

    prompt_tokens: int
    image_tokens: int
    image_tokens_kept: int
    kept: tuple[int, ...]
    neurons: int
    neurons_kept: tuple[int, ...]
    tokens_per_layer: tuple[int, ...]
    cached_per_layer: tuple[int, ...]
    kv_bytes: int
    prefill_flops: int
    ffn_bytes_per_token: int
    selection_seconds: float
    gather_seconds: float
    knees_differ: bool | None
