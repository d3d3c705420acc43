"""Thresholds by share against a loop over sorted magnitudes."""

import torch

from coremat.methods.common.quantiles import STEPS, at_share, reached, thresholds


def test_a_threshold_keeps_its_share_of_the_magnitudes():
    values = torch.randn(7, 143, generator=torch.Generator().manual_seed(0)).abs()
    ordered = sorted(values.flatten().tolist(), reverse=True)
    table = thresholds(values)
    assert table.shape == (STEPS,)
    for number in range(STEPS - 1):
        count = max(1, round((number + 1) * len(ordered) / STEPS))
        assert table[number] == ordered[count - 1]
        assert int((values >= table[number]).sum()) == count
    assert table[-1] == 0


def test_what_other_magnitudes_reach_is_counted_one_by_one():
    draw = torch.Generator().manual_seed(1)
    table = thresholds(torch.rand(50, generator=draw))
    others = torch.cat([torch.rand(33, generator=draw), table[:7]])  # some as large as a threshold: they are kept
    expected = [sum(value >= cut for value in others.tolist()) / len(others) for cut in table.tolist()]
    torch.testing.assert_close(reached(others, table), torch.tensor(expected))


def test_a_share_is_read_to_the_nearest_thousandth():
    table = torch.arange(STEPS) + 1.0
    assert [float(at_share(table, share)) for share in (1.0, 0.4, 0.0704, 0.07, 1e-6)] == [1000, 400, 70, 70, 1]
    assert at_share(torch.stack([table, 2 * table]), 0.5).tolist() == [500, 1000]
