"""WINA against loops over inputs, and as the dense model in which each token's weak inputs are zeroed."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import floor_of, highest
from strategies import quick, seeded, seeds
from tiny import LAYERS, SHAPE, answer, batch
from torch import nn
from torch.nn import functional

import coremat
from coremat.cost.schedule import Schedule
from coremat.errors import ConfigError
from coremat.methods.wina import StrongestInputs, Wina
from coremat.models.families import adapter_for
from coremat.models.shape import FFN, LINEARS


def wina(x: list[float], columns: list[list[float]], count: int) -> list[bool]:
    """Which inputs of one token stay. columns: [inputs][outputs]."""
    norms = [sum(value * value for value in column) ** 0.5 for column in columns]
    return highest([abs(value) * norm for value, norm in zip(x, norms, strict=True)], count)


def linear_of(seed: int, inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    """Columns of whole numbers and as long as whole numbers, so that products tie exactly or differ."""
    random, linear = seeded(seed), nn.Linear(inputs, outputs, bias=bias)
    weight = torch.zeros(outputs, inputs)
    for i, size in enumerate(torch.randint(1, 4, (inputs,), generator=random).tolist()):
        weight[i % outputs, i] = size
    linear.weight = nn.Parameter(weight)
    return linear.requires_grad_(False)


@quick
@given(seeds, st.integers(1, 3), st.integers(2, 30), st.integers(1, 9), st.data())
def test_inputs_stay_by_their_size_and_that_of_their_column(seed, tokens, inputs, outputs, data):
    linear, count = linear_of(seed, inputs, outputs), data.draw(st.integers(1, inputs))
    x = torch.randint(-4, 5, (tokens, inputs), generator=seeded(seed + 1)).float()
    found = StrongestInputs(linear, count, True)(x[None])[0]
    columns = linear.weight.T.tolist()
    for own, out in zip(x, found, strict=True):
        stay = torch.tensor(wina(own.tolist(), columns, count))
        assert torch.equal(out, (own * stay) @ linear.weight.T)


def test_by_hand_with_and_without_the_norms():
    """Sizes 3, 2, 1, norms 1, 2, 5: in the order of products the last comes first."""
    linear = nn.Linear(3, 2, bias=False)
    linear.weight = nn.Parameter(torch.tensor([[1.0, 0.0, 3.0], [0.0, 2.0, 4.0]]), requires_grad=False)
    x = torch.tensor([[-3.0, 2.0, 1.0]])
    assert StrongestInputs(linear, 1, True)(x).tolist() == [[3.0, 4.0]]
    assert StrongestInputs(linear, 2, True)(x).tolist() == [[3.0, 8.0]]
    assert StrongestInputs(linear, 1, False)(x).tolist() == [[-3.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 3])
def test_columns_read_one_by_one_give_what_zeros_give(tokens, dtype):
    """At one token in four the columns are read, at three all are; with a bias."""
    linear = nn.Linear(64, 48).to(dtype).requires_grad_(False)
    x = torch.randn(1, tokens, 64, generator=seeded(2)).to(dtype)
    own = StrongestInputs(linear, 24, True)
    stay = [wina(row, linear.weight.T.double().tolist(), 24) for row in x[0].double().tolist()]
    expected = functional.linear(x.double() * torch.tensor(stay), linear.weight.double(), linear.bias.double())
    error = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(own(x).double(), expected, rtol=error, atol=error)


def masked(model, names, keep, inputs):
    """The dense model with each token's weak inputs zeroed while decoding."""

    def silence(linear):
        columns = linear.weight.T.double().tolist()

        def hook(module, args):
            x = args[0]
            if x.shape[1] > 1:
                return None
            count = floor_of(keep, x.shape[-1])
            return (x * torch.tensor([[wina(own.tolist(), columns, count)] for own in x[:, 0].double()]),)

        return hook

    layers = adapter_for(model).layers
    linears = [adapter_for(model).linears(layer)[name] for layer in layers for name in names]
    handles = [linear.register_forward_pre_hook(silence(linear)) for linear in linears]
    try:
        return answer(model, inputs)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(("spec", "names"), [("wina:keep=0.4", LINEARS), ("wina:keep=0.4:matrices=ffn", FFN)])
@pytest.mark.parametrize("name", ["one", "ragged"])
def test_it_is_the_dense_model_with_weak_inputs_zeroed(model, spec, names, name):
    expected = masked(model, names, 0.4, batch(name))
    with coremat.apply(model, spec):
        found = answer(model, batch(name))
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)


def test_what_is_counted_is_what_is_read(model, monkeypatch):
    """Numbers of the columns that decode steps ask for, a step of a single sequence."""
    read = []
    real = torch.nn.functional.embedding_bag

    def counting(index, rows, *args, **options):
        read.append(index.numel() * rows.shape[1])
        return real(index, rows, *args, **options)

    monkeypatch.setattr("torch.nn.functional.embedding_bag", counting)
    method = Wina(keep=0.35)
    with coremat.apply(model, method) as session:
        answer(model, batch("one"), new=3)
        [stats] = session.stats
    reads = Schedule.of(method, LAYERS, SHAPE, 16, 4).reads
    assert sum(read) == 2 * sum(own.layer(SHAPE) for own in reads)
    assert stats.ffn_bytes_per_token == 4 * sum(own.ffn(SHAPE) for own in reads)
    assert reads[0].q_proj == Fraction(22, 64)
    assert reads[0].down_proj == Fraction(56, 160)


def test_the_ffn_alone_leaves_the_attention_alone(model):
    reads = Wina(keep=0.5, matrices="ffn").reads(0, SHAPE)
    assert reads.attention(SHAPE) == SHAPE.attention_weights
    assert reads.ffn(SHAPE) * 2 == 3 * 64 * 160
    assert Wina(keep=0.5).reads(0, SHAPE).attention(SHAPE) * 2 == SHAPE.attention_weights


@pytest.mark.parametrize("options", [{"keep": 0}, {"keep": 1.5}, {"matrices": "attention"}, {"weighted": 1}])
def test_options_that_cannot_be_are_refused(options):
    [(name, value)] = options.items()
    with pytest.raises(ConfigError, match=f"{name} is {value!r}; accepted"):
        Wina(**options)
