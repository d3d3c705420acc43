"""DivPrune: the most diverse image tokens, by max-min distance (Alvar, Singh, Akbari and Zhang, CVPR 2025).

The paper solves a max-min diversity problem greedily over the embeddings that the decoder gets. It does not look at the
question, and nothing is left to chance.

Departures: distances in float32 whatever the model computes in (in half precision a token may seem to lie apart from
itself); the smallest distances are kept from step to step in place of being found anew; a share is rounded down (theirs
to the nearest count), as for every method here; of several images each has its part of the budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from coremat.methods.base import Method, Reduction, Stage
from coremat.methods.options import FixedBudget, Positions
from coremat.methods.views import ImageView


@dataclass(frozen=True, kw_only=True)
class DivPrune(Method):
    """tokens: a count or a share (the paper's 0.098 of LLaVA-1.5's 576 are 56); positions: of the kept tokens (the
    authors': counted anew)."""

    name: ClassVar[str] = "divprune"
    summary: ClassVar[str] = "DivPrune: the most diverse image tokens, by max-min distance"
    paper: ClassVar[str] = "Alvar et al., CVPR 2025 (arXiv 2503.02175)"
    departures: ClassVar[str] = "distances in float32; a share is rounded down"

    tokens: FixedBudget = 0.098
    positions: Positions = "auto"

    def stages(self, layers: int) -> Sequence[Stage]:
        return (Stage(0, self.tokens, self.positions),)

    def before_decoder(self, image: ImageView, keep: int | None) -> Reduction:
        return Reduction(divprune(image.features, keep or 0))


def divprune(embeddings: torch.Tensor, count: int) -> torch.Tensor:
    """The tokens that lie farthest from each other in cosine distance, ties to the lower place.

    The first is the one whose nearest neighbour is farthest; then, again and again, the one that is farthest from those
    chosen. embeddings: [N, H]; count: from 1 to N. Returns bool [N].
    """
    unit = functional.normalize(embeddings.float(), dim=-1)
    distances = (1 - unit @ unit.T).fill_diagonal_(torch.inf)
    chosen = distances.amin(1).argmax(0, keepdim=True)
    picks, smallest = [chosen], distances.new_full((1, len(unit)), torch.inf)
    distances.fill_diagonal_(-torch.inf)  # so that no token is chosen twice
    for _ in range(count - 1):
        smallest = torch.minimum(smallest, distances[chosen])
        chosen = smallest.argmax(1)
        picks.append(chosen)
    keep = torch.zeros(len(unit), dtype=torch.bool, device=embeddings.device)
    return keep.index_fill_(0, torch.cat(picks), True)
