"""Linears and FFNs that read what a token uses: against all of it with the rest zeroed, and by what they ask for."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import highest
from strategies import quick, seeded, seeds
from torch import nn
from torch.nn import functional

from coremat.ffn import per_token, rows
from coremat.ffn.per_token import (
    chosen_outputs,
    gated_neurons,
    nonzero_gates,
    nonzero_index,
    nonzero_inputs,
    strongest,
)
from coremat.ffn.weight_layout import NeuronMajor

HIDDEN, NEURONS = 24, 60


class Gated(nn.Module):
    """A gated FFN whose `down_proj` lies neuron by neuron."""

    def __init__(self, dtype: torch.dtype = torch.float32, bias: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.gate_proj, self.up_proj = (nn.Linear(HIDDEN, NEURONS, bias=bias) for _ in range(2))
        self.down_proj, self.act_fn = nn.Linear(NEURONS, HIDDEN, bias=bias), nn.SiLU()
        self.to(dtype).requires_grad_(False)
        NeuronMajor(self.down_proj.weight).enter()


@pytest.fixture
def asked(monkeypatch):
    """How many rows products and sums were asked for."""
    found = {"products": 0, "sums": 0}

    def counting(name, key, place):
        real = getattr(per_token, name)

        def counted(*args):
            found[key] += args[place].numel()
            return real(*args)

        monkeypatch.setattr(per_token, name, counted)

    counting("row_products", "products", 1)
    counting("summed_rows", "sums", 1)
    return found


def some_zeros(tokens: int, size: int, share: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[tokens, size], of which about `share` are not zero; others of each token."""
    random = seeded(7)
    values = torch.randn(tokens, size, generator=random)
    return values.masked_fill(torch.rand(tokens, size, generator=random) >= share, 0).to(dtype)


# --- choices ----------------------------------------------------------------------------------------------------------


@quick
@given(seeds, st.integers(1, 3), st.integers(1, 30), st.data())
def test_the_strongest_are_the_highest_scores_ties_to_the_lower_index(seed, tokens, size, data):
    count = data.draw(st.integers(1, size))
    scores = torch.randint(-3, 4, (tokens, size), generator=seeded(seed)) / 4
    scores[scores == 0] *= -1  # a zero below zero is a zero
    scores[:, ::2] += 0.0
    for row, found in zip(scores, strongest(scores, count), strict=True):
        assert sorted(found.tolist()) == [n for n, there in enumerate(highest(row.tolist(), count)) if there]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.0, 2.0, 0.0, -1.0]], [[1, 3]]),
        ([[0.0, 0.0, 0.0]], [[0]]),  # a place of its own, where nothing is
        ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [[0], [1]]),
        ([[0.0, 3.0, 0.0, 4.0, 0.0], [0.0, 0.0, 5.0, 0.0, 0.0]], [[1, 3], [2, 0]]),
        ([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [[0], [0]]),
        ([[float("nan"), 0.0]], [[0]]),
        ([[1.0, -1.0]], None),  # all of them
        ([[0.0, 3.0, 4.0, 0.0], [0.0, 0.0, 5.0, 0.0]], None),  # as many together
    ],
)
def test_a_list_is_as_long_as_the_longest_and_filled_up_with_zeros(values, expected):
    found = nonzero_index(torch.tensor(values))
    assert (found if found is None else found.tolist()) == expected


def test_values_are_not_looked_at_on_a_device():
    assert nonzero_index(torch.zeros(1, 4, device="meta")) is None


# --- Linears ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 1.0])
@pytest.mark.parametrize("tokens", [1, 2, 4])
def test_inputs_that_are_zero_need_not_be_read(tokens, share, bias, lists, monkeypatch):
    """Also where lists are never made, as on CUDA."""
    if not lists:
        monkeypatch.setattr(per_token, "nonzero_index", lambda values: None)
    x, linear = some_zeros(tokens, NEURONS, share), Gated(bias=bias).down_proj
    expected = functional.linear(x.double(), linear.weight.double(), None if not bias else linear.bias.double())
    torch.testing.assert_close(nonzero_inputs(x, linear).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("tokens", "count"), [(1, 1), (1, 30), (1, 60), (2, 10), (3, 40)])
def test_outputs_are_those_of_the_whole_matrix(tokens, count, bias):
    up, x = Gated(bias=bias).up_proj, torch.randn(tokens, HIDDEN, generator=seeded(1))
    index = torch.rand(tokens, NEURONS, generator=seeded(2)).argsort(1)[:, :count]
    torch.testing.assert_close(chosen_outputs(x, index, up), up(x).gather(1, index), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "count", "by_rows"),
    [(torch.float32, 59, True), (torch.float32, 60, False), (torch.bfloat16, 26, True), (torch.bfloat16, 27, False)],
)
def test_rows_of_outputs_are_read_while_that_is_less_work(asked, dtype, count, by_rows):
    """On a CPU 16 bits pay up to 45 in 100."""
    mlp = Gated(dtype)
    chosen_outputs(torch.ones(1, HIDDEN, dtype=dtype), torch.arange(count)[None], mlp.up_proj)
    assert asked["products"] == (count if by_rows else 0)


def test_with_kernels_rows_pay_up_to_all_of_them(monkeypatch):
    monkeypatch.setattr(rows, "_kernels_on", lambda device: True)
    weight = Gated(torch.bfloat16).up_proj.weight
    assert rows.products_pay(torch.arange(59)[None], weight)
    assert not rows.products_pay(torch.arange(60)[None], weight)


# --- FFNs -------------------------------------------------------------------------------------------------------------


def zeroed(mlp: Gated, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """The rest of the FFN whole, in float64."""
    exact = copy.deepcopy(mlp).double()
    return exact.down_proj(gates.double() * exact.up_proj(x.double()))


@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 1.0])
@pytest.mark.parametrize("tokens", [1, 3])
def test_gates_that_are_zero_leave_their_neurons_out(tokens, share, bias, dtype, lists, monkeypatch):
    if not lists:
        monkeypatch.setattr(per_token, "nonzero_index", lambda values: None)
    mlp, gates = Gated(dtype, bias), some_zeros(tokens, NEURONS, share, dtype)
    x = torch.randn(tokens, HIDDEN, generator=seeded(4)).to(dtype)
    error = 1e-5 if dtype == torch.float32 else 3e-2
    found = nonzero_gates(x, gates, mlp)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), zeroed(mlp, x, gates), rtol=error, atol=error)


def test_of_one_token_only_the_rows_of_its_neurons_are_read(asked):
    gates = some_zeros(1, NEURONS, 0.3)
    nonzero_gates(torch.ones(1, HIDDEN), gates, Gated())
    used = sum(value != 0 for value in gates[0].tolist())
    assert 10 < used < 30
    assert asked == {"products": used, "sums": used}


def test_of_neurons_that_are_given_only_their_rows_are_read(asked):
    mlp, index = Gated(), torch.tensor([[3, 50, 7], [8, 0, 3]])
    x, gates = torch.randn(2, HIDDEN, generator=seeded(5)), torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.1, -1.0]])
    expected = zeroed(mlp, x, torch.zeros(2, NEURONS).scatter(1, index, gates))
    torch.testing.assert_close(gated_neurons(x, gates, index, mlp).double(), expected, rtol=1e-5, atol=1e-5)
    assert asked == {"products": 6, "sums": 6}
