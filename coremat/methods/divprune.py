"""DivPrune: the most diverse image tokens, by max-min distance (Alvar, Singh, Akbari and Zhang, CVPR 2025).

The paper solves a max-min diversity problem greedily over the embeddings that the decoder gets. It does not look at the
question, and nothing is left to chance.

Departures: distances in float32 whatever the model computes in (in half precision a token may seem to lie apart from
itself); the smallest distances are kept from step to step in place of being found anew; a share is rounded down, as for
every method here.
"""

import torch
from torch.nn import functional

from coremat.core_tokens import budget as places_of


def divprune(embeddings: torch.Tensor, budget: int | float) -> torch.Tensor:
    """The tokens that lie farthest from each other in cosine distance, ties to the lower place.

    The first is the one whose nearest neighbour is farthest; then, again and again, the one that is farthest from those
    chosen. embeddings: [N, H]. Returns bool [N].
    """
    unit = functional.normalize(embeddings.float(), dim=-1)
    distances = (1 - unit @ unit.T).fill_diagonal_(torch.inf)
    chosen = distances.amin(1).argmax(0, keepdim=True)
    picks, smallest = [chosen], distances.new_full((1, len(unit)), torch.inf)
    distances.fill_diagonal_(-torch.inf)  # so that no token is chosen twice
    for _ in range(places_of(budget, len(unit)) - 1):
        smallest = torch.minimum(smallest, distances[chosen])
        chosen = smallest.argmax(1)
        picks.append(chosen)
    keep = torch.zeros(len(unit), dtype=torch.bool, device=embeddings.device)
    return keep.index_fill_(0, torch.cat(picks), True)
