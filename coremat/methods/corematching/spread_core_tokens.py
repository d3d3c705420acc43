"""Image tokens spread over the image, denser where few core neurons are activated.

Of coremat's own. Core tokens (eq. 5 and 6) crowd where the prompt's majority lies: most votes for core neurons are cast
by background, and background activates them. The tokens that activate the fewest are the salient ones, but alone they
crowd on the largest object. So a token's weight grows with the core neurons that it does not activate, above a floor,
and tokens are taken evenly along the weight that runs up through the sequence, row by row of the image: the points of
van der Corput's sequence 1/2, 1/4, 3/4, 1/8, ..., each of which falls on one token. A token's rank is that of the first
point that falls on it, so that what a smaller budget keeps a larger one keeps too.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from coremat.methods.base import Stage
from coremat.methods.corematching.core_tokens import CoreTokens
from coremat.methods.options import Share
from coremat.methods.views import LayerView

LARGEST = 1 << 20  # points, for a prompt however long


@dataclass(frozen=True, kw_only=True)
class SpreadCoreTokens(CoreTokens):
    """The options of core-tokens. At the knee as many tokens stay as core-tokens keeps. floor: the weight of the image
    token with the most core neurons, where that with the fewest has 1 more."""

    name: ClassVar[str] = "spread-core-tokens"
    summary: ClassVar[str] = "image tokens spread over the image, denser where few core neurons are activated"
    paper: ClassVar[str] = "coremat's own"

    floor: Share = 0.1

    def score(self, stage: Stage, layer: LayerView) -> torch.Tensor:
        counts = self.core_counts(layer)
        most = counts.masked_fill(~layer.image, -1).amax(1, keepdim=True)
        fewest = counts.masked_fill(~layer.image, counts.shape[-1] + int(counts.max())).amin(1, keepdim=True)
        salience = (most - counts) / (most - fewest).clamp(min=1)
        return -spread(torch.where(layer.image, self.floor + salience, 0.0), self.floor)

    def counted_by(self, stage: Stage, layer: LayerView) -> torch.Tensor:
        return self.core_counts(layer)


def spread(weights: torch.Tensor, floor: float) -> torch.Tensor:
    """The rank of each token, from 0: of the first of van der Corput's points that falls on it, where tokens lie side
    by side as wide as they weigh. weights: [B, T], 0 for what is no image token, else between `floor` and 1 + `floor`.
    Returns int64 [B, T]; tokens on which none falls share the last rank."""
    ends = weights.double().cumsum(1)
    points = van_der_corput(_enough(weights.shape[1], floor)).to(weights.device)
    hit = torch.searchsorted(ends, points * ends[:, -1:], right=True).clamp(max=weights.shape[1] - 1)
    ranks = torch.arange(len(points), device=weights.device).expand_as(hit)
    last = torch.full(weights.shape, len(points), device=weights.device)
    return last.scatter_reduce(1, hit, ranks, "amin")


def _enough(tokens: int, floor: float) -> int:
    """So many points that one falls on every token: a power of 2 that is no less than the inverse of the smallest share
    of the weight that a token can have, since any such many lie evenly."""
    return min(LARGEST, 1 << int(tokens * (1 + floor) / floor).bit_length())


def van_der_corput(count: int) -> torch.Tensor:
    """0, 1/2, 1/4, 3/4, 1/8, ...: the bits of 0, 1, 2, ... mirrored at the point, moved by half of the smallest step.
    count: a power of 2. Returns float64 [count]."""
    values = torch.zeros(1, dtype=torch.float64)
    while len(values) < count:
        values = torch.cat([values, values + 0.5 / len(values)])
    return values + 0.5 / count
