"""Two levels of choice against loops: candidates by the prompt, of them each token's best gates."""

import copy

import pytest
import torch
from neuron_views import layer_view
from reference import floor_of, highest
from strategies import seeded
from test_energy_neurons import energy_neurons
from test_griffin import griffin
from tiny import LAYERS, NEURONS, SHAPE, answer, batch
from torch import nn
from torch.nn import functional

import coremat
from coremat.cost.schedule import Schedule
from coremat.errors import ConfigError, UnsupportedError
from coremat.methods.two_level import TwoLevel, TwoLevelFFN
from coremat.offload.ffn_streaming import offloaded_ffn
from coremat.timers import Stopwatch

CPU = torch.device("cpu")


class Gated(nn.Module):
    """A gated FFN of 8 inputs and 20 neurons."""

    def __init__(self, dtype: torch.dtype, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.gate_proj, self.up_proj = nn.Linear(8, 20, bias=bias), nn.Linear(8, 20, bias=bias)
        self.down_proj, self.act_fn = nn.Linear(20, 8, bias=bias), nn.SiLU()
        self.to(dtype).requires_grad_(False)


def best(gates: list[float], core: list[int], count: int, norms: list[float]) -> list[int]:
    """Of a token's candidates those with the largest gates."""
    stay = highest([abs(gates[n]) * norms[n] for n in core], count)
    return [n for n, there in zip(core, stay, strict=True) if there]


def two_level(mlp: Gated, x: torch.Tensor, core: list[list[int]], count: int, weighted: bool) -> torch.Tensor:
    """Token by token, in float64."""
    exact = copy.deepcopy(mlp).double()
    norms = exact.down_proj.weight.norm(dim=0).tolist() if weighted else [1.0] * 20
    out = torch.zeros(*x.shape, dtype=torch.float64)
    for b, sequence in enumerate(x.double()):
        for t, token in enumerate(sequence):
            gates, ups = functional.silu(exact.gate_proj(token)), exact.up_proj(token)
            used = best(gates.tolist(), core[b % len(core)], count, norms)
            used_alone = torch.zeros(20, dtype=torch.float64).index_fill_(0, torch.tensor(used), 1)
            out[b, t] = exact.down_proj(gates * ups * used_alone)
    return out


CORE = [[0, 2, 3, 7, 8, 9, 12, 13, 18], [1, 2, 4, 5, 6, 10, 11, 15, 19]]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("sets", "batch_size", "tokens", "count"),
    [(1, 1, 1, 4), (1, 1, 2, 4), (2, 2, 1, 4), (2, 2, 1, 9), (1, 3, 2, 3), (2, 2, 3, 1)],
)
def test_each_token_uses_its_candidates_with_the_largest_gates(sets, batch_size, tokens, count, bias, weighted):
    """All ways of reading: rows one by one, all rows, and gates that are copied or computed whole."""
    mlp, core = Gated(torch.float32, bias), CORE[:sets]
    x = torch.randn(batch_size, tokens, 8, generator=seeded(batch_size + tokens))
    ffn = TwoLevelFFN(mlp, count, weighted)
    for rows in (core, [range(20)] * 2):  # as many candidates as there are neurons, of two sequences: none is copied
        if len(rows) in (1, batch_size):
            ffn.prepare(torch.tensor([list(row) for row in rows]), Stopwatch(CPU))
            expected = two_level(mlp, x, [list(row) for row in rows], count, weighted)
            torch.testing.assert_close(ffn(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_half_precision_goes_through():
    mlp = Gated(torch.bfloat16, False)
    x = torch.randn(1, 1, 8, generator=seeded(5)).bfloat16()
    ffn = TwoLevelFFN(mlp, 9, False)
    ffn.prepare(torch.tensor(CORE[:1]), Stopwatch(CPU))
    torch.testing.assert_close(ffn(x).double(), two_level(mlp, x, CORE[:1], 9, False), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("by", ["energy", "griffin"])
def test_candidates_are_those_of_the_method_that_is_named(by):
    activations = torch.randn(1, 6, 30, generator=seeded(4))
    tokens = activations[0].double().tolist()
    expected = griffin(tokens, 30, 0.6) if by == "griffin" else energy_neurons(tokens, [1.0] * 30, 0.6)
    assert TwoLevel(by=by).neurons(layer_view(activations)).tolist() == [expected]


def silenced(model, chosen, beta, inputs):
    """The dense model with all but each token's neurons zeroed while decoding. chosen: the candidates of each layer."""

    def silence(layer, core):
        def hook(module, args):
            active, count = args[0], floor_of(beta, NEURONS)
            if active.shape[1] > 1:
                return None
            used = torch.zeros_like(active)
            for row, gates in enumerate(seen[layer].double()):
                used[row, 0, best(gates[0].tolist(), core[row % len(core)].tolist(), count, [1.0] * NEURONS)] = 1
            return (active * used,)

        return hook

    seen, handles = {}, []
    for number, layer in enumerate(model.get_decoder().layers):

        def see(module, args, output, number=number):
            seen[number] = functional.silu(output)

        handles.append(layer.mlp.gate_proj.register_forward_hook(see))
        handles.append(layer.mlp.down_proj.register_forward_pre_hook(silence(number, chosen[number])))
    try:
        return answer(model, inputs)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", ["one", "ragged"])
def test_it_is_the_dense_model_with_the_other_neurons_zeroed(model, name):
    with coremat.apply(model, "two-level:candidates=0.5:beta=0.2") as session:
        found = answer(model, batch(name))
        chosen = dict(session.prompt.neurons)
        assert all(core.shape[1] == 80 for core in chosen.values())
    expected = silenced(model, chosen, 0.2, batch(name))
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)


def test_what_is_counted_is_what_is_read(model, monkeypatch):
    """Rows that a decode step of a single sequence asks for, matrix by matrix."""
    read = {"products": 0, "sums": 0, "gates": 0}

    def counting(owner, name, key, numbers):
        real = getattr(owner, name)

        def counted(*args):
            read[key] += numbers(*args)
            return real(*args)

        monkeypatch.setattr(owner, name, counted)

    import coremat.ffn.per_token as per_token
    import coremat.methods.two_level as here

    counting(per_token, "row_products", "products", lambda x, index, rows: index.numel() * rows.shape[1])
    counting(per_token, "summed_rows", "sums", lambda weights, index, rows: index.numel() * rows.shape[1])
    counting(here, "times_rows", "gates", lambda x, rows: rows.numel())
    method = TwoLevel(candidates=0.55, beta=0.15)
    with coremat.apply(model, method) as session:
        answer(model, batch("one"), new=3)
        [stats] = session.stats
        assert session.workspace_bytes == LAYERS * 88 * (8 + 4 * 64)
    schedule = Schedule.of(method, LAYERS, SHAPE, 16, 4)
    assert read == {"products": 2 * LAYERS * 24 * 64, "sums": 2 * LAYERS * 24 * 64, "gates": 2 * LAYERS * 88 * 64}
    assert sum(read.values()) == 2 * sum(own.ffn(SHAPE) for own in schedule.reads)
    assert stats.ffn_bytes_per_token == 4 * sum(own.ffn(SHAPE) for own in schedule.reads)
    assert schedule.resident == stats.neurons_kept == (88,) * LAYERS


def test_all_neurons_are_the_dense_model(model):
    dense = answer(model, batch("one"))
    with coremat.apply(model, "two-level:candidates=1.0:beta=1.0"):
        torch.testing.assert_close(answer(model, batch("one")).logits, dense.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.7}, "beta is 0.7; accepted: up to 0.6, the share of candidates"),
        ({"candidates": 0.0}, "candidates is 0.0; accepted: a number above 0"),
        ({"by": "votes"}, "by is 'votes'; accepted: energy, griffin"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TwoLevel(**options)


def test_offloaded_weights_are_refused(model):
    with offloaded_ffn(model, "cpu"), pytest.raises(UnsupportedError, match="FFN weights are offloaded"):
        coremat.apply(model, "two-level").__enter__()
