"""What the machine can do is measured, not assumed."""

import pytest
import torch

from coremat.profile import machine
from coremat.profile.machine import Machine, measure_machine


def test_the_larger_time_is_the_limit():
    here = Machine(bandwidth=1e9, rate=1e12)
    assert here.limit_seconds(flops=2e12, moved=1e9) == 2
    assert here.limit_seconds(flops=2e12, moved=3e9) == 3


def test_rates_are_amounts_over_the_fastest_round(monkeypatch):
    monkeypatch.setattr(machine, "COPIED_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr(machine, "_fastest", lambda run, device: run() is not None or 0.5)
    monkeypatch.setattr(machine, "TOKENS", 8)
    monkeypatch.setattr(machine, "OUT", 64)
    monkeypatch.setattr(machine, "IN", 32)
    found = measure_machine(torch.device("cpu"), torch.float32)
    assert found.rate == pytest.approx(2 * 8 * 64 * 32 / 1)
    assert found.bandwidth == pytest.approx(max(2 * (1 << 20), (1 << 20) / 0.5))


def test_the_first_round_does_not_count():
    calls = []
    assert machine._fastest(lambda: calls.append(1), torch.device("cpu")) > 0
    assert len(calls) == machine.ROUNDS + 1
