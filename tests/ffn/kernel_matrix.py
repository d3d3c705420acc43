"""The whole model on the kernels, for every method that prunes to fixed neurons, and those that choose for each token.
Run by test_kernels.py in a process of its own, as kernel_cases.py is."""

import configs
import pytest
import torch
from equivalence import both
from tiny import answer, batch, tiny_llava

import coremat
from coremat.ffn import rows
from coremat.ffn.indexed import IndexedFFN
from coremat.ffn.weight_layout import NeuronMajor
from coremat.methods import registry
from coremat.methods.predictor import PredictedNeuronsFFN
from coremat.runtime.session import session_of

NEW = 3
METHODS = {name: registry.parse(spec) for name, spec in configs.CONFIGS.items()}
SETS = [name for name, method in METHODS.items() if method.takes("neurons") and not method.takes("decode_ffn")]


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


@pytest.mark.parametrize("name", SETS)
def test_every_method_equals_hiding_and_zeroing(model, name):
    def run():
        session = session_of(model)
        assert session is None or all(isinstance(ffn, IndexedFFN) for ffn in session._ffn)
        return answer(model, batch("ragged"), new=NEW)

    sparse, dense = both(model, METHODS[name], run, backend="indexed")
    torch.testing.assert_close(sparse.logits, dense.logits, rtol=0, atol=2e-5)
    assert torch.equal(sparse.tokens, dense.tokens)


@pytest.mark.parametrize("spec", ["wina:keep=0.3", "two-level:candidates=0.5:beta=0.2"])
def test_rows_of_each_token_are_read_by_kernels(model, spec, monkeypatch):
    """As by torch's own operators, and never by these."""
    with monkeypatch.context() as without:
        without.setattr(rows, "_kernels_on", lambda device: False)
        with coremat.apply(model, spec):
            expected = answer(model, batch("left-padded"), new=NEW)
    monkeypatch.setattr(torch.nn.functional, "embedding_bag", None)
    with coremat.apply(model, spec):
        found = answer(model, batch("left-padded"), new=NEW)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=2e-5)
    assert torch.equal(found.tokens, expected.tokens)


@pytest.mark.parametrize("tokens", [1, 2])
def test_rows_of_predicted_neurons_are_read_by_kernels(model, tokens, monkeypatch):
    mlp, draw = model.get_decoder().layers[0].mlp, torch.Generator().manual_seed(0)
    inner, outer, x = (torch.randn(*size, generator=draw) for size in ((4, 64), (160, 4), (1, tokens, 64)))
    layout = NeuronMajor(mlp.down_proj.weight)
    layout.enter()
    try:
        ffn = PredictedNeuronsFFN(mlp, 40, inner, outer)
        with monkeypatch.context() as without, torch.no_grad():
            without.setattr(rows, "_kernels_on", lambda device: False)
            expected = ffn(x)
        monkeypatch.setattr(torch.nn.functional, "embedding_bag", None)
        with torch.no_grad():
            torch.testing.assert_close(ffn(x), expected, rtol=0, atol=1e-5)
    finally:
        layout.leave()
