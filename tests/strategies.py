"""Random inputs on which ties, empty rows and rounding are common."""

import torch
from hypothesis import settings
from hypothesis import strategies as st

quick = settings(max_examples=25, deadline=None, derandomize=True)

alphas = st.sampled_from([0.05, 0.1, 0.2, 0.3, 0.35, 0.6, 0.7, 0.9, 1.0])
betas = st.sampled_from([0.2, 0.29, 0.3, 0.4, 0.57, 0.6, 0.8, 1.0])
seeds = st.integers(0, 2**32 - 1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def activations(draw: st.DrawFn) -> torch.Tensor:
    """A [B, T, F]: normal values on a grid, in half precision; some rows without positives, some all equal."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(5, 40)))
    grid = draw(st.sampled_from([1, 2, 16, 4096]))
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
    random = seeded(draw(seeds))
    values = (torch.randn(shape, generator=random) * grid).round() / grid
    kind = torch.randint(0, 5, shape[:2], generator=random)
    values[kind == 0] = -values[kind == 0].abs()
    values[kind == 1] = 0.5
    return values.to(dtype)


def masks(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 2, shape, generator=seeded(seed)).bool()


curves = st.lists(st.integers(0, 12) | st.integers(0, 4500), min_size=1, max_size=40).map(
    lambda scores: sorted(scores, reverse=True)
)
score_lists = st.lists(st.integers(0, 9), min_size=1, max_size=30)

grids = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4)
