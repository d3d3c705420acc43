"""Average pooling against loops, and on grids where the cells are known."""

import pytest
import reference_rivals
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_views import kept
from strategies import grids, quick, seeded, seeds

from coremat.methods.average_pooling import average_pooling, pooled_grid


@quick
@given(grids, seeds, st.data())
def test_cells_and_their_means_are_those_of_the_loops(grids, seed, data):
    sizes = [height * width for height, width in grids]
    count = data.draw(st.integers(1, sum(sizes)))
    embeddings = torch.randn(sum(sizes), 3, generator=seeded(seed))
    found = average_pooling(embeddings, grids, count)
    shares = reference_rivals.share_out(count, sizes, 0)
    pooled = [pooled_grid(grid, share) if share else (0, 0) for grid, share in zip(grids, shares, strict=True)]
    wanted = reference_rivals.average_pooling(embeddings.tolist(), grids, pooled)
    assert kept(found.keep) == sorted(wanted)
    assert len(wanted) <= count
    for place, row in wanted.items():
        torch.testing.assert_close(found.features[place], torch.tensor(row), rtol=1e-4, atol=1e-6)


def test_no_cell_reaches_into_another_rectangle():
    """Two frames and what is behind them: each cell is the mean of a frame's quarter."""
    found = average_pooling(torch.tensor([1.0] * 16 + [5.0] * 16 + [9.0])[:, None], [(4, 4), (4, 4), (1, 1)], 8)
    assert kept(found.keep) == [5, 7, 13, 15, 21, 23, 29, 31]
    assert found.features[found.keep, 0].tolist() == [1.0] * 4 + [5.0] * 4


def test_four_cells_of_a_four_by_four_image():
    found = average_pooling(torch.arange(16.0)[:, None], [(4, 4)], 4)
    assert kept(found.keep) == [5, 7, 13, 15]
    assert found.features[found.keep, 0].tolist() == [2.5, 4.5, 10.5, 12.5]


@pytest.mark.parametrize(
    ("grid", "budget", "wanted"),
    [
        ((24, 24), 64, (8, 8)),
        ((24, 24), 65, (8, 8)),  # not 5 x 13
        ((24, 24), 60, (6, 10)),
        ((24, 24), 61, (6, 10)),
        ((24, 24), 576, (24, 24)),
        ((4, 16), 16, (2, 8)),
        ((1, 50), 7, (1, 7)),
    ],
)
def test_the_pooled_grid_has_the_most_cells_that_are_not_strips(grid, budget, wanted):
    assert pooled_grid(grid, budget) == wanted


def test_where_all_stay_nothing_changes():
    embeddings = torch.randn(15, 2, generator=seeded(0)).to(torch.bfloat16)
    found = average_pooling(embeddings, [(3, 5)], 15)
    assert found.keep.all()
    assert torch.equal(found.features, embeddings)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_averaged_in_full(dtype):
    """A sum of 4096 threes would be rounded in half precision."""
    found = average_pooling(torch.full((4096, 1), 3.0, dtype=dtype), [(64, 64)], 1)
    assert found.features.dtype == dtype
    assert found.features[found.keep].tolist() == [[3.0]]
