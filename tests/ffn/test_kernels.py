"""The kernels: interpreted on any machine, compiled where there is a GPU, and as code for an H100 without one."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from coremat.errors import UnsupportedError
from coremat.ffn.kernels import OPTIONS, available
from coremat.ffn.kernels.core_rows import (
    ACTIVATIONS,
    DOWN_COLUMNS,
    DOWN_ROWS,
    MOST_SHARES,
    REDUCE_COLUMNS,
    activation_name,
    core_rows_ffn,
    gate_up_tile,
)
from coremat.methods.corematching.core_neurons import core_count

CASES = Path(__file__).parent / "kernel_cases.py"
HELPERS = CASES.parent.parent
CPU = torch.device("cpu")


def run_cases(cases: Path, **environment: str) -> None:
    # Interpreted kernels call Python's compiler at every step, which pytest's own way with `assert` slows down.
    plain = ("--assert=plain", "--noconftest", "-p", "no:cacheprovider")
    command = [sys.executable, "-m", "pytest", *plain, str(cases)]
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    clean["PYTHONPATH"] = os.pathsep.join([str(HELPERS), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_interpreted_kernels_are_right():
    pytest.importorskip("triton")
    run_cases(CASES, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


def test_the_whole_model_on_interpreted_kernels():
    pytest.importorskip("triton")
    run_cases(CASES.with_name("kernel_matrix.py"), TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


@pytest.mark.skipif(not (torch.cuda.is_available() and available(torch.device("cuda"))), reason="no GPU for Triton")
def test_compiled_kernels_are_right():
    run_cases(CASES)


# --- without triton ---------------------------------------------------------------------------------------------------


def test_what_needs_no_triton_can_be_imported_without_it():
    code = (
        "import sys; sys.modules['triton'] = None; import torch, coremat.ffn.kernels; "
        "import coremat.ffn.kernels.core_rows as rows; "
        "print(rows.activation_name(torch.nn.SiLU()), coremat.ffn.kernels.available(torch.device('cpu')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["silu", "False"]


def test_a_cpu_runs_the_kernels_only_in_the_interpreter(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not available(CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert available(CPU)


@pytest.mark.parametrize(("capability", "runs"), [((6, 1), False), ((7, 0), True), ((9, 0), True)])
def test_old_cards_do_not_run_them(monkeypatch, capability, runs):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert available(torch.device("cuda")) == runs


# --- which FFNs -------------------------------------------------------------------------------------------------------

X = torch.linspace(-6, 6, 49)


def test_a_named_activation_computes_what_torch_does_under_that_name():
    truth = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu, "gelu_pytorch_tanh": nn.GELU(approximate="tanh")}
    named = [(activation_name(module), module) for module in (ACT2FN[key] for key in ACT2FN)]
    known = [(name, module) for name, module in named if name]
    assert {name for name, _ in known} == set(truth) == set(ACTIVATIONS)
    for name, module in known:
        torch.testing.assert_close(module(X), truth[name](X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("act_fn", "name"),
    [
        (nn.SiLU(), "silu"),
        (F.silu, "silu"),
        (nn.GELU(), "gelu"),
        (nn.GELU(approximate="tanh"), "gelu_pytorch_tanh"),
        (nn.ReLU(), "relu"),
        (ACT2FN["gelu_pytorch_tanh"], "gelu_pytorch_tanh"),
        (ACT2FN["quick_gelu"], None),
        (torch.tanh, None),
    ],
)
def test_activations_have_names(act_fn, name):
    assert activation_name(act_fn) == name


WEIGHT = torch.zeros(9, 8)
SOUND = {"x": torch.zeros(2, 8), "gate": WEIGHT, "up": WEIGHT, "down_rows": WEIGHT, "core": torch.zeros(2, 3).int()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "tanh"}, r"activation is 'tanh'; accepted: silu, gelu, gelu_pytorch_tanh, relu\."),
        ({"gate": WEIGHT.double()}, r"gate is torch\.float64; accepted: torch\.float32, "),
        ({"up": torch.zeros(9, 7)}, r"up has shape \(9, 7\) and strides \(7, 1\); accepted: \(9, 8\), "),
        ({"down_rows": torch.zeros(10, 8)}, r"down_rows has shape \(10, 8\)"),
        (
            {"down_rows": torch.zeros(8, 9).T},
            r"down_rows has shape \(9, 8\) and strides \(1, 9\); accepted: \(9, 8\), ",
        ),
        ({"core": torch.zeros(2, 3)}, r"core is torch\.float32 of shape \(2, 3\); accepted: int32 or int64 \[B, K\]\."),
        ({"core": torch.zeros(3, 3).int()}, r"core has 3 sets for 2 sequences; accepted: one each, or one for all\."),
    ],
)
def test_what_the_kernels_cannot_take_is_refused(changes, message):
    with pytest.raises(UnsupportedError, match=message):
        core_rows_ffn(**(SOUND | {"activation": "silu"} | changes))


# --- compiled for an H100, without one ------------------------------------------------------------------------------

MODELS = {"llava-1.5-7b": (4096, 11008), "llava-1.5-13b": (5120, 13824), "qwen2.5-vl-7b": (3584, 18944)}
ODD_NUMBERS = {"K", "SHARE", "S", "T", "core_stride", "voters"}  # what need not be a multiple of 16


@pytest.fixture(scope="module")
def sass() -> Any:
    """compile(kernel, types of the pointers, constants, warps): how often each instruction stands in its code."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    if triton.knobs.runtime.interpret:
        pytest.skip("the kernels are interpreted in this process")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def instructions(kernel: Any, pointers: dict[str, str], constants: dict[str, Any], warps: int = 4) -> Counter:
        names = kernel.arg_names
        types = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in names}
        attrs = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n not in {*ODD_NUMBERS, *constants}}
        source = ASTSource(kernel, types, {(names.index(n),): value for n, value in constants.items()}, attrs)
        try:
            compiled = triton.compile(source, GPUTarget("cuda", 90, 32), {"num_warps": warps} | OPTIONS)
            code = compiled.asm["sass"]
        except FileNotFoundError as error:
            pytest.skip(f"triton has no assembler here: {error}")
        return Counter(word for word in code.split() if word.startswith(("LDG", "STL", "LDL")))

    return instructions


ROWS = {"x": "*bf16", "gate": "*bf16", "up": "*bf16", "down": "*bf16", "core": "*i32", "active": "*fp32"}
WIDE = "LDG.E.EF.128"  # 16 bytes to a thread, evict first


def no_spill(instructions: Counter) -> bool:
    return not any(word.startswith(("STL", "LDL")) for word in instructions)


@pytest.mark.parametrize("beta", [0.2, 0.4])
@pytest.mark.parametrize("model", MODELS)
def test_gate_up_rows_loads_wide_and_keeps_its_sums_in_registers(sass, model, beta):
    from coremat.ffn.kernels.core_rows_triton import gate_up_rows, silu

    hidden, size = MODELS[model]
    rows, columns = gate_up_tile(hidden, core_count(size, beta))
    code = sass(gate_up_rows, ROWS, {"ACT": silu, "ROWS": rows, "COLUMNS": columns})
    assert code[WIDE] == 4  # two per matrix
    assert no_spill(code)


def test_down_rows_partial_loads_wide_and_keeps_its_sums_in_registers(sass):
    from coremat.ffn.kernels.core_rows_triton import down_rows_partial

    code = sass(down_rows_partial, ROWS | {"partial": "*fp32"}, {"ROWS": DOWN_ROWS, "COLUMNS": DOWN_COLUMNS})
    assert code[WIDE] == 4
    assert no_spill(code)


def test_down_reduce_holds_the_most_shares(sass):
    from coremat.ffn.kernels.core_rows_triton import down_reduce

    code = sass(down_reduce, {"partial": "*fp32", "y": "*bf16"}, {"SHARES": MOST_SHARES, "COLUMNS": REDUCE_COLUMNS})
    assert code["LDG.E.128"]
    assert no_spill(code)


@pytest.mark.parametrize(("bits", "infinity"), [("*i16", 0x7F80), ("*i32", 0x7F800000)])
def test_a_token_of_a_7b_model_votes_within_its_registers(sass, bits, infinity):
    from coremat.methods.corematching.votes_kernel import block_and_warps, vote

    pointers = {"activations": bits, "voters": "*i1", "wanted": "*i32", "counts": "*i32"}
    block, warps = block_and_warps(11008)
    code = sass(vote, pointers, {"INFINITY": infinity, "BLOCK": block}, warps)
    assert code["LDG.E.128"] * 32 * warps * 16 == block * int(bits[2:]) // 8  # all of it, and nothing twice
    assert no_spill(code)
