"""The kernels against slow float64 references. Run by test_kernels.py in a process of its own, since whether a kernel
is interpreted is settled when it is imported; on a machine with a GPU, also as compiled.
"""

import os

import pytest
import reference
import torch
from torch import nn
from transformers.activations import ACT2FN

from coremat.ffn.kernels.core_rows import (
    ACTIVATIONS,
    activation_name,
    core_rows_ffn,
    down_shares,
    gate_up_tile,
    products_with_rows,
    sum_of_rows,
)
from coremat.methods.corematching.votes_kernel import count_votes

INTERPRETED = "TRITON_INTERPRET" in os.environ
DEVICE = "cpu" if INTERPRETED else "cuda"
# One rounding of the answer, which the interpreter does to bfloat16 by cutting; all else is float32.
ROUNDING = {torch.float32: 1e-6, torch.float16: 2.0**-11, torch.bfloat16: 2.0 ** (-7 if INTERPRETED else -8)}

# hidden size, neurons, core neurons
SMALL, ODD, LONG, FEW = (64, 96, 33), (257, 331, 101), (2500, 40, 7), (65, 40, 9)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(shape: tuple[int, int, int], batch: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """x, gate, up, down_rows."""
    hidden, size, _ = shape
    random = seeded(hidden + batch)
    x = torch.randn(batch, hidden, generator=random)
    weights = [torch.randn(size, hidden, generator=random) / hidden**0.5 for _ in range(3)]
    return [t.to(DEVICE, dtype) for t in (x, *weights)]


def draw_core(shape: tuple[int, int, int], sets: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    _, size, count = shape
    chosen = [torch.randperm(size, generator=seeded(s))[:count].sort().values for s in range(sets)]
    return torch.stack(chosen).to(DEVICE, dtype)


def ffn(
    x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, core: torch.Tensor, act: nn.Module
) -> torch.Tensor:
    """One sequence after the other, on gathered rows, in float64."""
    rows = []
    for b, own in enumerate(x.double()):
        c = core[b if len(core) > 1 else 0].long()
        active = act(gate[c].double() @ own) * (up[c].double() @ own)
        rows.append(active @ down[c].double())
    return torch.stack(rows)


def assert_rounded(got: torch.Tensor, exact: torch.Tensor) -> None:
    slack = 1e-6 * exact.abs().max()  # of the float32 sums
    error = (got.double() - exact).abs()
    assert (error <= ROUNDING[got.dtype] * exact.abs() + slack).all(), error.max()


@pytest.mark.parametrize(
    ("shape", "tokens", "dtype"),
    [(SMALL, 1, torch.float32), (SMALL, 3, torch.bfloat16), (ODD, 2, torch.float16), (LONG, 1, torch.float32)],
)
def test_rows_of_each_token_are_multiplied_and_added_up(shape, tokens, dtype):
    x, rows, *_ = draw(shape, tokens, dtype)
    index = draw_core(shape, tokens, torch.int64).flip(1)
    products = products_with_rows(x, rows, index)
    weights = torch.randn(index.shape, generator=seeded(5)).to(DEVICE, dtype)
    sums = sum_of_rows(weights, rows, index)
    for n in range(tokens):
        own = rows[index[n]].double()
        torch.testing.assert_close(products[n].double(), own @ x[n].double(), rtol=1e-5, atol=1e-5)
        assert_rounded(sums[n], weights[n].double() @ own)


@pytest.mark.parametrize(
    ("shape", "batch", "sets", "dtype"),
    [
        (SMALL, 1, 1, torch.float32),
        (SMALL, 4, 4, torch.bfloat16),
        (SMALL, 4, 1, torch.float16),
        (ODD, 1, 1, torch.bfloat16),
        (ODD, 2, 2, torch.float32),
        (LONG, 1, 1, torch.float16),
    ],
)
def test_each_sequence_goes_through_its_own_neurons(shape, batch, sets, dtype):
    tensors, core = draw(shape, batch, dtype), draw_core(shape, sets)
    got = core_rows_ffn(*tensors, core, "silu")
    assert got.dtype == dtype
    assert_rounded(got, ffn(*tensors, core, nn.SiLU()))


def test_the_shapes_reach_every_way_of_cutting_the_work():
    assert down_shares(ODD[0], ODD[2], 1) > 1 == down_shares(LONG[0], LONG[2], 1)
    assert gate_up_tile(LONG[0], LONG[2])[1] < LONG[0]
    assert gate_up_tile(ODD[0], ODD[2])[0] > 1


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_activation(name):
    tensors, core = draw(SMALL, 2, torch.float32), draw_core(SMALL, 1)
    tensors[0] *= 4  # far into both tails
    assert activation_name(ACT2FN[name]) == name
    assert_rounded(core_rows_ffn(*tensors, core, name), ffn(*tensors, core, ACT2FN[name]))


def test_half_precision_weights_lose_nothing_inside():
    """With a float32 x the answer is not rounded, and what the kernels did to the weights can be seen."""
    x, *weights = draw(SMALL, 2, torch.bfloat16)
    core = draw_core(SMALL, 2)
    assert_rounded(core_rows_ffn(x.float(), *weights, core, "silu"), ffn(x.float(), *weights, core, nn.SiLU()))


def padded(matrix: torch.Tensor, gap: int, fill: float) -> torch.Tensor:
    """The same rows, `gap` further apart, with something between them that must not be read."""
    rows, width = matrix.shape
    room = torch.full((rows + 1, width + gap), fill, dtype=matrix.dtype, device=matrix.device)
    room[:rows, :width] = matrix
    return room[:rows, :width]


def test_rows_may_lie_apart():
    tensors, core = draw(FEW, 2, torch.float32), draw_core(FEW, 2)
    apart = [padded(t, gap, torch.nan) for gap, t in enumerate(tensors, start=3)]
    assert torch.equal(core_rows_ffn(*apart, padded(core, 2, 0), "silu"), core_rows_ffn(*tensors, core, "silu"))


def test_the_same_bits_at_every_run_and_for_both_kinds_of_index():
    tensors = draw(SMALL, 2, torch.bfloat16)
    narrow, wide = (draw_core(SMALL, 2, dtype) for dtype in (torch.int32, torch.int64))
    first = core_rows_ffn(*tensors, narrow, "silu")
    assert torch.equal(first, core_rows_ffn(*tensors, narrow, "silu"))
    assert torch.equal(first, core_rows_ffn(*tensors, wide, "silu"))


def test_the_operator_keeps_the_rules_of_torch():
    arguments = (*draw(SMALL, 2, torch.float32), draw_core(SMALL, 2), "silu")
    torch.library.opcheck(core_rows_ffn, arguments, test_utils=("test_schema", "test_faketensor"))


def test_a_compiled_step_holds_it_and_sees_new_neurons():
    graphs = []

    def backend(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    tensors, core = draw(SMALL, 2, torch.float32), draw_core(SMALL, 2)
    step = torch.compile(lambda x: core_rows_ffn(x, *tensors[1:], core, "silu") + 1, fullgraph=True, backend=backend)
    before = step(tensors[0])
    core.copy_(core.flip(0))
    after = step(tensors[0])
    assert len(graphs) == 1
    assert_rounded(after - 1, ffn(*tensors, core, nn.SiLU()))
    assert not torch.equal(before, after)


# --- votes ----------------------------------------------------------------------------------------------------------

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def looped(activations: torch.Tensor, alpha: float, voters: torch.Tensor) -> torch.Tensor:
    pairs = zip(activations.tolist(), voters.tolist(), strict=True)
    return torch.tensor([reference.votes(rows, alpha, says) for rows, says in pairs])


def counted(activations: torch.Tensor, alpha: float, voters: torch.Tensor) -> torch.Tensor:
    counts = count_votes(activations.to(DEVICE), alpha, voters.to(DEVICE))
    assert counts.dtype == torch.int64
    return counts.cpu()


def everyone(activations: torch.Tensor) -> torch.Tensor:
    return torch.ones(activations.shape[:2], dtype=torch.bool)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_votes_are_those_of_the_loop_ties_included(dtype, alpha):
    a = (torch.randn(2, 4, 61, generator=seeded(0)) * 4).round().div(4).to(dtype)
    voters = torch.tensor([[True, False, True, True], [False, True, True, False]])
    assert torch.equal(counted(a, alpha, voters), looped(a, alpha, voters))


@pytest.mark.parametrize("dtype", FLOATS)
def test_votes_of_values_at_the_ends_of_their_range(dtype):
    top, tiny = torch.finfo(dtype).max, torch.finfo(dtype).tiny
    rows = [
        [0.0] * 7,
        [-1.0] * 7,
        [-0.0, 0.0, -tiny, tiny, -0.0, 0.0, tiny],
        [3.0] * 7,
        [torch.inf, top, -torch.inf, torch.inf, top, -top, 1.0],
    ]
    a = torch.tensor([rows], dtype=dtype)
    assert torch.equal(counted(a, 0.4, everyone(a)), looped(a, 0.4, everyone(a)))


def test_equal_activations_vote_for_the_first_neurons():
    a = torch.ones(1, 3, 10)
    assert counted(a, 0.3, everyone(a)).tolist() == [[3] * 3 + [0] * 7]


@pytest.mark.parametrize(("alpha", "positive"), [(0.3, 50), (0.55, 100)])  # a ceiling too high in float32, in float64
def test_as_many_votes_as_the_exact_ceiling(alpha, positive):
    numbers = [0, 1, positive - 1, positive, positive + 1]
    a = (torch.arange(positive + 3) < torch.tensor(numbers)[:, None])[:, None].float()
    wanted = [reference.ceil_of(alpha, n) for n in numbers]
    assert counted(a, alpha, everyone(a)).sum(-1).tolist() == wanted


def test_a_nan_votes_for_nothing_and_changes_no_other_vote():
    a = torch.randn(1, 3, 20, generator=seeded(1))
    absent = a.clone()
    a[0, :, ::4], absent[0, :, ::4] = torch.nan, 0.0
    assert torch.equal(counted(a, 0.4, everyone(a)), counted(absent, 0.4, everyone(a)))


def test_padding_has_no_say_whatever_is_in_it():
    a = torch.randn(2, 4, 20, generator=seeded(2))
    voters = torch.tensor([[False, False, True, True], [True] * 4])
    other = a.clone()
    other[0, :2] = torch.nan
    assert torch.equal(counted(a, 0.4, voters), counted(other, 0.4, voters))


def test_activations_and_voters_may_be_views():
    a, voters = torch.randn(2, 6, 21, generator=seeded(3)), torch.rand(2, 6, generator=seeded(4)) < 0.5
    own, says = a[:, ::2, 1:], voters[:, ::2]
    assert torch.equal(counted(own, 0.4, says), looped(own, 0.4, says))
