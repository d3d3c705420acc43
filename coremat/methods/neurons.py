"""Neurons chosen token by token: the upper bound of any predictor, and what a predictor's work costs.

Core neurons are one set for the whole answer. Deja Vu (Liu et al., ICML 2023) and PowerInfer (Song, Mi, Xie and Chen,
SOSP 2024) choose anew for every token, by a small network that guesses which neurons will be active. Such a network
belongs to one checkpoint and is trained for it, on ReLU models.
"""

import torch
from torch import nn

RANK = 1024  # of the predictor's two matrices; PowerInfer's vary from layer to layer about it


def oracle_neurons(activations: torch.Tensor, count: int) -> torch.Tensor:
    """Each token's `count` neurons of largest |activation|, ties to the lower index: what a perfect predictor says.

    activations: [B, q, F], the input of `down_proj`. Returns bool [B, q, F]. It needs every neuron's activation, so it
    saves no time.
    """
    size = activations.abs()
    # The count-th largest value is the same whichever way topk orders equal ones.
    cut = size.topk(count, dim=-1).values[..., -1:]
    above, equal = size > cut, size == cut
    room = count - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= room))


class Predictor(nn.Module):
    """One layer's predictor: hidden -> rank -> neurons, a ReLU between. Timing only.

    Its weights are random, so its work and its bytes are those of a trained one and what it says means nothing: the
    paper times PowerInfer on LLaVA in this sense. It reads what the FFN's norm reads.
    """

    def __init__(self, hidden: int, neurons: int, rank: int = RANK, seed: int = 0) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden, rank, bias=False)
        self.outer = nn.Linear(rank, neurons, bias=False)
        random = torch.Generator().manual_seed(seed)
        for layer in (self.inner, self.outer):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=random)
        self.requires_grad_(False)

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """How likely each neuron is to be active, as a number without a scale. x: [B, q, H]. Returns [B, q, F]."""
        return self.outer(self.inner(x).relu())
