"""Leaving the block, however it is left, gives back the model bit for bit."""

import pytest
import torch
from tiny import answer, batch

import coremat

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
METHODS = [
    "corematching",
    "projection-tokens:tokens=4+core-neurons:prefill_from=2",
    "visionzip:tokens=4+random-neurons",
    "fastv",
    "oracle-neurons",
    "two-level",
    "wina",
    "corematching-released",
]


@pytest.fixture
def untouched(model):
    """Holds, around a test, the state, the hooks, the attributes and the output of the model."""
    # Before the hooks are listed: transformers adds some of its own at the first call.
    logits = answer(model, batch("left-padded")).logits
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = traces(model)
    yield
    assert traces(model) == before
    after = model.state_dict()
    assert state.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in state.items())
    assert all("forward" not in layer.mlp.__dict__ for layer in model.get_decoder().layers)
    assert torch.equal(answer(model, batch("left-padded")).logits, logits)


def traces(model):
    """Every hook and every attribute of every module."""
    return {
        name: ([sorted(getattr(module, kind)) for kind in HOOKS], sorted(module.__dict__))
        for name, module in model.named_modules()
    }


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("method", METHODS)
class TestRestored:
    def test_after_the_block(self, model, method):
        with coremat.apply(model, method):
            answer(model, batch("ragged"))

    def test_after_a_block_that_did_nothing(self, model, method):
        with coremat.apply(model, method) as session:
            assert session.stats == []

    def test_after_an_exception_in_the_block(self, model, method):
        with pytest.raises(KeyError), coremat.apply(model, method):
            print({}[str(answer(model, batch("one")))])

    @pytest.mark.parametrize("number", [0, 3])
    def test_after_an_exception_in_a_forward(self, model, method, number):
        with pytest.raises(KeyError), coremat.apply(model, method), broken(model, number):
            answer(model, batch("one"))

    def test_a_failed_forward_does_not_spoil_the_next(self, model, method):
        with coremat.apply(model, method):
            wanted = answer(model, batch("left-padded"))
            with pytest.raises(KeyError), broken(model, 3):
                answer(model, batch("ragged"))
            assert torch.equal(answer(model, batch("left-padded")).logits, wanted.logits)

    def test_blocks_one_after_the_other(self, model, method):
        for _ in range(2):
            with coremat.apply(model, method):
                answer(model, batch("one"))

    def test_a_users_own_forward_of_an_ffn_comes_back(self, model, method):
        mlp = model.get_decoder().layers[1].mlp
        original = mlp.forward
        mlp.forward = mine = lambda x: original(x)
        try:
            with coremat.apply(model, method):
                answer(model, batch("one"))
            assert mlp.__dict__["forward"] is mine
        finally:
            del mlp.forward


class broken:
    """A layer that raises."""

    def __init__(self, model, number):
        self.layer = model.get_decoder().layers[number]

    def __enter__(self):
        def fail(module, args):
            raise KeyError("layer")

        self.handle = self.layer.register_forward_pre_hook(fail)

    def __exit__(self, *error):
        self.handle.remove()


@pytest.mark.usefixtures("untouched")
def test_a_refused_session_leaves_nothing(model):
    with pytest.raises(coremat.errors.ConfigError), coremat.apply(model, "corematching:prune_layer=6"):
        pass


@pytest.mark.usefixtures("untouched")
def test_an_answer_may_be_read_after_the_block(model):
    with coremat.apply(model, "corematching:tokens=5") as session:
        answer(model, batch("one"))
    assert session.stats[0].image_tokens_kept == 5
