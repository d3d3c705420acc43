"""Ctrl-C at any moment while a block is entered or left, or an answer made, leaves the model as it was."""

import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny import answer, batch, tiny_llava

import coremat
from coremat.runtime.session import session_of

PACKAGE = str(Path(coremat.__file__).parent)
STEP = 13  # every so many lines of coremat's own code; a prime, so that it meets all lines of a loop


@contextmanager
def interrupted(line: int):
    """KeyboardInterrupt before the `line`-th line of coremat that is run inside the block. Yields the lines counted."""
    counted = [0]

    def trace(frame, event, arg):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            counted[0] += 1
            if counted[0] == line:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        yield counted
    finally:
        sys.settrace(None)


def state(model) -> dict:
    """Everything that a block may change: where weights lie and what they are, hooks, and replaced methods."""
    places = {
        name: (w.data_ptr(), w.stride(), w.is_inference(), w.detach().clone()) for name, w in model.named_parameters()
    }
    hooks = {
        name: (list(m._forward_hooks), list(m._forward_pre_hooks), sorted(m.__dict__))
        for name, m in model.named_modules()
    }
    return {"weights": places, "hooks": hooks}


def differences(before: dict, after: dict) -> list[str]:
    weights = [
        name
        for name, (place, stride, inference, value) in before["weights"].items()
        if after["weights"][name][:3] != (place, stride, inference) or not after["weights"][name][3].equal(value)
    ]
    return weights + [name for name, own in before["hooks"].items() if after["hooks"][name] != own]


@pytest.mark.parametrize("method", ["corematching", "divprune:tokens=5", "visionzip:tokens=5"])
def test_an_interrupt_leaves_nothing_behind(method):
    model, inputs = tiny_llava(), batch("one")
    answer(model, inputs, new=1)  # transformers itself leaves hooks on a model at its first call
    before = state(model)
    for _ in range(2):  # the first time some modules are imported, and some values kept
        with interrupted(-1) as lines, coremat.apply(model, method):
            answer(model, inputs, new=2)
    for line in range(1, lines[0], STEP):
        with pytest.raises(KeyboardInterrupt), interrupted(line), coremat.apply(model, method):
            answer(model, inputs, new=2)
        assert not differences(before, state(model)), f"interrupted in line {line} of {lines[0]}"
        assert session_of(model) is None
    assert lines[0] > 300


def test_a_half_rearranged_weight_is_put_back():
    """The values are in memory twice meanwhile, so that an interrupted copy can be made again."""
    from coremat.ffn.weight_layout import NeuronMajor

    weight = torch.nn.Parameter(torch.arange(12.0).view(3, 4))
    layout = NeuronMajor(weight)
    layout._values = weight.data.clone()
    weight.data.view(-1)[:7] = -1  # a copy that was stopped
    layout.leave()
    assert torch.equal(weight.data, torch.arange(12.0).view(3, 4))
    layout.enter()
    layout.leave()
    layout.leave()
    assert torch.equal(weight.data, torch.arange(12.0).view(3, 4))
