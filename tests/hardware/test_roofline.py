"""What the machine can do is measured, not assumed."""

import pytest
import torch

from coremat.hardware import roofline
from coremat.hardware.roofline import Roofline, measure_roofline


def test_the_larger_time_is_the_bound():
    here = Roofline(bandwidth=1e9, rate=1e12)
    assert here.bound_seconds(flops=2e12, moved=1e9) == 2
    assert here.bound_seconds(flops=2e12, moved=3e9) == 3


def test_rates_are_amounts_over_the_fastest_round(monkeypatch):
    monkeypatch.setattr(roofline, "COPIED_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr(roofline, "_fastest", lambda run, device: run() is not None or 0.5)
    monkeypatch.setattr(roofline, "TOKENS", 8)
    monkeypatch.setattr(roofline, "OUT", 64)
    monkeypatch.setattr(roofline, "IN", 32)
    found = measure_roofline(torch.device("cpu"), torch.float32)
    assert found.rate == pytest.approx(2 * 8 * 64 * 32 / 1)
    assert found.bandwidth == pytest.approx(max(2 * (1 << 20), (1 << 20) / 0.5))


def test_the_first_round_does_not_count():
    calls = []
    assert roofline._fastest(lambda: calls.append(1), torch.device("cpu")) > 0
    assert len(calls) == roofline.ROUNDS + 1
