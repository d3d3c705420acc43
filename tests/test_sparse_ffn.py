"""An FFN on core rows against a loop over neurons, and its workspace."""

import math

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import quick, seeded, seeds
from torch import nn

from coremat.sparse_ffn import CoreFFN

HIDDEN, SIZE = 4, 9


class GatedFFN(nn.Module):
    def __init__(self, seed: int, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(HIDDEN, SIZE, bias=bias)
        self.up_proj = nn.Linear(HIDDEN, SIZE, bias=bias)
        self.down_proj = nn.Linear(SIZE, HIDDEN, bias=bias)
        self.act_fn = nn.SiLU()
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=seeded(seed + parameter.numel()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def draw_core(seed: int, rows: int, count: int) -> torch.Tensor:
    random = seeded(seed)
    return torch.stack([torch.randperm(SIZE, generator=random)[:count].sort().values for _ in range(rows)])


def looped(mlp: GatedFFN, x: torch.Tensor, core: torch.Tensor) -> torch.Tensor:
    projections = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    weights = [p.weight.tolist() for p in projections]
    biases = [p.bias.tolist() for p in projections] if mlp.down_proj.bias is not None else None
    rows = [
        [reference.ffn(t.tolist(), *weights, c.tolist(), silu, biases) for t in row]
        for row, c in zip(x, core, strict=True)
    ]
    return torch.tensor(rows)


@quick
@given(seeds, st.booleans(), st.integers(1, 3), st.integers(1, 4), st.integers(1, SIZE))
def test_each_sequence_goes_through_its_own_neurons(seed, bias, rows, tokens, count):
    mlp = GatedFFN(seed, bias)
    core, x = draw_core(seed, rows, count), torch.randn(rows, tokens, HIDDEN, generator=seeded(seed))
    sparse = CoreFFN(mlp)
    sparse.gather(core)
    torch.testing.assert_close(sparse(x).detach(), looped(mlp, x, core), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_all_neurons_are_the_dense_ffn(bias):
    mlp, x = GatedFFN(0, bias), torch.randn(2, 3, HIDDEN, generator=seeded(1))
    sparse = CoreFFN(mlp)
    sparse.gather(torch.arange(SIZE).expand(2, -1))
    torch.testing.assert_close(sparse(x), mlp(x))


@pytest.mark.parametrize("bias", [False, True])
def test_a_second_smaller_prompt_uses_the_same_memory_and_nothing_of_the_first(bias):
    mlp, x = GatedFFN(0, bias), torch.randn(1, 1, HIDDEN, generator=seeded(1))
    used, fresh = CoreFFN(mlp), CoreFFN(mlp)
    used.gather(draw_core(2, 3, 8))
    places = {name: room.data_ptr() for name, room in used.rows.items() if "bias" not in name}
    core = draw_core(3, 1, 4)
    used.gather(core)
    fresh.gather(core)
    assert {name: room.data_ptr() for name, room in used.rows.items() if "bias" not in name} == places
    assert torch.equal(used(x), fresh(x))


def test_a_larger_prompt_gets_more_memory():
    mlp, x, core = GatedFFN(0, False), torch.randn(3, 1, HIDDEN, generator=seeded(1)), draw_core(2, 3, 8)
    sparse = CoreFFN(mlp)
    sparse.gather(draw_core(3, 1, 2))
    sparse.gather(core)
    torch.testing.assert_close(sparse(x).detach(), looped(mlp, x, core), rtol=1e-3, atol=1e-4)


def test_the_workspace_holds_three_rows_per_neuron_and_sequence():
    sparse = CoreFFN(GatedFFN(0, False))
    assert sparse.bytes == 0
    sparse.gather(draw_core(2, 3, 8))
    assert sparse.bytes == 3 * 3 * 8 * HIDDEN * 4


def test_weights_are_copied_not_changed():
    mlp = GatedFFN(0, True)
    before = {name: value.clone() for name, value in mlp.state_dict().items()}
    sparse = CoreFFN(mlp)
    sparse.gather(draw_core(2, 2, 5))
    sparse(torch.randn(2, 1, HIDDEN))
    sparse.rows["gate"].zero_()
    assert all(torch.equal(value, before[name]) for name, value in mlp.state_dict().items())
