"""The whole model on the indexed kernels, for every config that prunes to fixed neurons. Run by test_kernels.py in a
process of its own, as kernel_cases.py is."""

import configs
import pytest
import torch
from dense_masked import dense_masked
from tiny import answer, batch, chosen, tiny_llava

import coremat
from coremat.engine.indexed import IndexedFFN

NEW = 3
SETS = [name for name, config in configs.CONFIGS.items() if config.neurons in ("core", "random")]


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


@pytest.mark.parametrize("name", SETS)
def test_every_config_equals_hiding_and_zeroing(model, name):
    config = configs.CONFIGS[name]
    with coremat.apply(model, config, backend="indexed") as session:
        assert all(isinstance(ffn, IndexedFFN) for ffn in session._ffn)
        sparse = answer(model, batch("ragged"), new=NEW)
        choice = chosen(session)
    with dense_masked(model, config, choice):
        dense = answer(model, batch("ragged"), new=NEW)
    torch.testing.assert_close(sparse.logits, dense.logits, rtol=0, atol=2e-5)
    assert torch.equal(sparse.tokens, dense.tokens)
