"""The energy of neurons: sums of squares over the tokens of a prompt and over the columns of `down_proj`."""

import torch
from torch.nn import functional

BLOCK = 256  # tokens, or neurons, that are held in float32 at once


def energy(activations: torch.Tensor, voters: torch.Tensor, normalised: bool = False) -> torch.Tensor:
    """Each neuron's squared activations, summed over the tokens that vote.

    activations: [B, T, F]; voters: bool [B, T], False for padding and for whoever has no say. normalised: the
    activations of each token are divided by their l2 norm first; a token of zeros stays zero. Returns [B, F], summed in
    float32 whatever the activations are (in float64 where they are).
    """
    wide = torch.promote_types(activations.dtype, torch.float32)
    total = activations.new_zeros(len(activations), activations.shape[-1], dtype=wide)
    for block, say in zip(activations.split(BLOCK, 1), voters.split(BLOCK, 1), strict=True):
        own = block.masked_fill(~say[..., None], 0).to(wide)
        total += (functional.normalize(own, dim=-1) if normalised else own).square_().sum(1)
    return total


def largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` largest scores of each row, ties to the lower index. scores: [B, F]. Returns int64 [B, count],
    ascending."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :count].sort(-1).values


def column_norms(weight: torch.Tensor) -> torch.Tensor:
    """The l2 norm of each column. weight: [H, F]. Returns float32 [F]."""
    return torch.cat([columns.float().norm(dim=0) for columns in weight.detach().split(BLOCK, 1)])
