"""An FFN on gathered core rows against a loop over neurons; when it copies, and how much."""

import math

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import quick, seeded, seeds
from torch import nn

from coremat.ffn import weight_layout
from coremat.ffn.gathered import GatheredFFN, break_even_steps
from coremat.ffn.rows import BAGS, weighted_rows
from coremat.ffn.weight_layout import NeuronMajor, product
from coremat.timers import Stopwatch

HIDDEN, SIZE = 4, 9
INDEX_BYTES = 8


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


def gathered(mlp: GatedFFN, core: torch.Tensor, copied: bool = True) -> GatheredFFN:
    sparse = GatheredFFN(mlp)
    sparse.prepare(core, watch())
    if copied:
        sparse.materialise()
    return sparse


def watch() -> Stopwatch:
    return Stopwatch(torch.device("cpu"))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=1e-3, atol=1e-4)


@quick
@given(seeds, st.booleans(), st.booleans(), st.integers(1, 3), st.integers(1, 4), st.integers(1, SIZE))
def test_each_sequence_goes_through_its_own_neurons(seed, bias, copied, rows, tokens, count):
    mlp = GatedFFN(seed, bias)
    core, x = draw_core(seed, rows, count), torch.randn(rows, tokens, HIDDEN, generator=seeded(seed))
    sparse = gathered(mlp, core, copied)
    sparse._steps_before_copy = 1
    close(sparse(x), looped(mlp, x, core))
    assert sparse._copied == copied


@quick
@given(seeds, st.booleans(), st.booleans(), st.integers(1, 3), st.integers(1, SIZE))
def test_one_set_for_a_whole_batch(seed, bias, copied, rows, count):
    mlp = GatedFFN(seed, bias)
    core, x = draw_core(seed, 1, count), torch.randn(rows, 2, HIDDEN, generator=seeded(seed))
    sparse = gathered(mlp, core, copied)
    sparse._steps_before_copy = 1
    close(sparse(x), looped(mlp, x, core.expand(rows, -1)))


@pytest.mark.parametrize("copied", [False, True])
def test_weights_that_leave_are_copied_at_once_down_and_all(copied):
    """Silenced where there is no copy: the way of devices that do not add rows up where they lie."""
    mlp, core, x = GatedFFN(0, True), draw_core(2, 2, 5), torch.randn(2, 3, HIDDEN, generator=seeded(1))
    expected = looped(mlp, x, core)
    mlp.forward.__func__.streamed = True
    try:
        sparse = gathered(mlp, core, copied=False)
    finally:
        del mlp.forward.__func__.streamed
    assert sparse._copied
    assert sparse.bytes == 2 * 3 * 5 * HIDDEN * 4 + INDEX_BYTES * 2 * 5 + 2 * 2 * 5 * 4  # rows, their numbers, biases
    sparse._copied, sparse._steps_before_copy = copied, 1
    if copied:
        for parameter in (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight):
            parameter.data.fill_(torch.nan)
    close(sparse(x), expected)


@pytest.mark.parametrize("bias", [False, True])
def test_all_neurons_are_the_dense_ffn(bias):
    mlp, x = GatedFFN(0, bias), torch.randn(2, 3, HIDDEN, generator=seeded(1))
    close(gathered(mlp, torch.arange(SIZE).expand(2, -1))(x), mlp(x))


@pytest.mark.parametrize("bias", [False, True])
def test_a_second_smaller_prompt_uses_the_same_memory_and_nothing_of_the_first(bias):
    mlp, x = GatedFFN(0, bias), torch.randn(1, 1, HIDDEN, generator=seeded(1))
    used = gathered(mlp, draw_core(2, 3, 8))
    places = {name: room.data_ptr() for name, room in used._workspace._memory.items()}
    core = draw_core(3, 1, 4)
    used.prepare(core, watch())
    used.materialise()
    assert {name: room.data_ptr() for name, room in used._workspace._memory.items()} == places
    assert torch.equal(used(x), gathered(mlp, core)(x))


def test_a_larger_prompt_gets_more_memory():
    mlp, x, core = GatedFFN(0, False), torch.randn(3, 1, HIDDEN, generator=seeded(1)), draw_core(2, 3, 8)
    sparse = gathered(mlp, draw_core(3, 1, 2))
    sparse.prepare(core, watch())
    sparse.materialise()
    close(sparse(x), looped(mlp, x, core))


def test_the_workspace_holds_two_rows_per_neuron_and_sequence():
    sparse = gathered(GatedFFN(0, False), draw_core(2, 3, 8), copied=False)
    assert sparse.bytes == 0
    sparse.materialise()
    assert sparse.bytes == 3 * 2 * 8 * HIDDEN * 4 + INDEX_BYTES * 3 * 8


@pytest.mark.parametrize(
    ("share", "steps"), [(0.2, 0), (0.4, 1), (0.5, 2), (0.8, 8), (1.0, float("inf")), (1.6, float("inf"))]
)
def test_steps_until_a_copy_has_paid(share, steps):
    """A step without the copy reads 1 - share too much, the copy reads and writes its share."""
    assert break_even_steps(share) == steps


def test_the_copy_is_made_when_it_has_paid_and_once():
    mlp, x = GatedFFN(0, False), torch.randn(1, 1, HIDDEN, generator=seeded(1))
    sparse, made = gathered(mlp, draw_core(2, 1, 4), copied=False), []
    for _ in range(4):
        sparse(x)
        made.append(sparse.bytes > 0)
    assert made == [False, True, True, True]
    assert 4 / SIZE < 0.5
    mlp.gate_proj.weight.data.fill_(torch.nan)
    assert sparse(x).isfinite().all()
    sparse.prepare(draw_core(3, 1, 4), watch())
    assert sparse(x).isnan().all()


def test_copying_is_timed_and_only_copying():
    timed = watch()
    sparse = GatheredFFN(GatedFFN(0, False))
    sparse.prepare(draw_core(2, 1, 4), timed)
    sparse(torch.randn(1, 1, HIDDEN))
    assert timed.seconds == 0
    sparse(torch.randn(1, 1, HIDDEN))
    copied = timed.seconds
    sparse(torch.randn(1, 1, HIDDEN))
    assert timed.seconds == copied > 0


def test_weights_are_copied_not_changed():
    mlp = GatedFFN(0, True)
    before = {name: value.clone() for name, value in mlp.state_dict().items()}
    sparse = gathered(mlp, draw_core(2, 2, 5))
    sparse(torch.randn(2, 1, HIDDEN))
    sparse._gate_up.zero_()
    assert all(torch.equal(value, before[name]) for name, value in mlp.state_dict().items())


@quick
@given(seeds, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3 * BAGS))
def test_weighted_rows_are_a_sum_over_rows(seed, batch, tokens, count):
    random = seeded(seed)
    rows = torch.randn(40, HIDDEN, generator=random, dtype=torch.float64)
    core = torch.stack([torch.randperm(40, generator=random)[:count] for _ in range(batch)])
    weights = torch.randn(batch, tokens, count, generator=random, dtype=torch.float64)
    expected = torch.stack([w @ rows[c] for w, c in zip(weights, core, strict=True)])
    torch.testing.assert_close(weighted_rows(weights, core, rows), expected)


def test_weighted_rows_in_half_precision_round_once_per_partial_sum():
    rows, weights = torch.randn(400, 64, generator=seeded(1)), torch.randn(1, 1, 300, generator=seeded(2))
    core = torch.randperm(400, generator=seeded(3))[None, :300]
    half = weighted_rows(weights.bfloat16(), core, rows.bfloat16())
    exact = weights.bfloat16().double()[0] @ rows.bfloat16().double()[core[0]]
    assert half.dtype == torch.bfloat16
    assert (half[0].double() - exact).norm() < 2**-8 * exact.norm()


@pytest.mark.parametrize("bias", [False, True])
def test_a_long_product_in_this_layout_is_the_same(bias, monkeypatch):
    monkeypatch.setattr(weight_layout, "LONG", 4)
    mlp, x = GatedFFN(0, bias), torch.randn(2, 3, HIDDEN, generator=seeded(1))
    expected = mlp(x)
    layout = NeuronMajor(mlp.down_proj.weight)
    layout.enter()
    mlp.down_proj.forward = product(mlp.down_proj, mlp.down_proj.forward)
    close(mlp(x), expected)
    close(mlp(x[:1]), expected[:1])
    del mlp.down_proj.forward
    layout.leave()
    assert torch.equal(mlp(x), expected)


def test_matrix_units_are_those_of_the_dtype(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True, "amx_fp16": False}, raising=False)
    weight_layout._has_matrix_units.cache_clear()
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    assert [weight_layout._has_matrix_units(dtype) for dtype in dtypes] == [True, False, False]
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # older torch cannot tell
    weight_layout._has_matrix_units.cache_clear()
    assert not weight_layout._has_matrix_units(torch.bfloat16)
    weight_layout._has_matrix_units.cache_clear()


@pytest.mark.parametrize("units", [False, True])
def test_the_product_is_turned_round_only_where_the_cpu_has_no_matrix_units(units, monkeypatch):
    monkeypatch.setattr(weight_layout, "LONG", 4)
    monkeypatch.setattr(weight_layout, "_has_matrix_units", lambda dtype: units)
    mlp, plain = GatedFFN(0, False), []
    forward = product(mlp.down_proj, lambda x: plain.append(x) or x)
    forward(torch.randn(1, 6, mlp.down_proj.in_features))
    assert len(plain) == units


def test_the_layout_is_neuron_by_neuron_inside_and_as_it_was_afterwards():
    mlp = GatedFFN(0, False)
    weight, before = mlp.down_proj.weight, mlp.down_proj.weight.detach().clone()
    layout = NeuronMajor(weight)
    assert layout.is_needed
    layout.enter()
    assert weight.T.is_contiguous()
    assert torch.equal(weight, before)
    assert not NeuronMajor(weight).is_needed
    layout.leave()
    assert weight.is_contiguous()
    assert torch.equal(weight, before)
    assert mlp.down_proj.weight is weight
