"""Made images before the projector: random ones, and those whose attention and likeness are written down."""

import math

import torch
from hypothesis import strategies as st
from strategies import seeded, seeds

from coremat.methods.base import Reduction
from coremat.methods.views import ImageView, TowerView

LAYER = 0  # of the tower: the only one that made images have


@st.composite
def views(draw: st.DrawFn, least: int = 1, most: int = 40) -> ImageView:
    """Up to `most` places, one to three heads, with a class token or without; attention far from even."""
    places, heads = draw(st.integers(least, most)), draw(st.integers(1, 3))
    random, ones = seeded(draw(seeds)), draw(st.integers(0, 1))
    features = torch.randn(places, 4, generator=random)
    queries, keys = 2 * torch.randn(2, ones + places, heads, 3, generator=random)
    token = torch.randn(4, generator=random) if ones else None
    return image_view(features, token, queries, keys)


def written_view(
    weights: list[float], likeness: list[float] | None = None, dtype: torch.dtype = torch.float32
) -> ImageView:
    """One head; the class token attends to itself with weight 1 and to place j in proportion to weights[j].

    likeness: angles; keys of equal angle are most alike. Place j holds the number j, the class token -1.
    """
    angles = torch.tensor(likeness or [0.0] * len(weights))
    # The first coordinate is for attention, and too small beside the others to count in a cosine.
    tilt = torch.tensor([0.0, *map(math.log, weights)])
    around = torch.cat([torch.zeros(1, 2), 1e4 * torch.stack([angles.cos(), angles.sin()], 1)])
    keys = torch.cat([tilt[:, None], around], 1)[:, None]
    queries = torch.zeros_like(keys)
    queries[0, 0, 0] = math.sqrt(3)
    features = torch.arange(len(weights))[:, None].to(dtype)
    return image_view(features, torch.tensor([-1.0], dtype=dtype), queries.to(dtype), keys.to(dtype))


def image_view(
    features: torch.Tensor, class_token: torch.Tensor | None, queries: torch.Tensor, keys: torch.Tensor
) -> ImageView:
    tower = {LAYER: TowerView(queries, keys, len(features))}
    return ImageView(features, class_token=class_token, tower=tower)


def held(view: ImageView, reduction: Reduction) -> torch.Tensor:
    """[N, C]: what the places hold afterwards."""
    return view.features if reduction.features is None else reduction.features


def shares(weights: list[float]) -> torch.Tensor:
    """What the softmax makes of the weights of a written view."""
    return torch.tensor(weights) / (1 + sum(weights))


def kept(keep: torch.Tensor) -> list[int]:
    return keep.nonzero()[:, 0].tolist()
