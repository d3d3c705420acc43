"""Which families the static step decodes, with the tokens of `generate`, and that it says so of the others."""

import pytest
import torch
from test_families import config_of
from tiny import answer

import coremat
from coremat.decoding.graph_decoder import GraphDecoder
from coremat.errors import UnsupportedError
from coremat.testing.families import FAMILIES

REFUSED = {
    "qwen2_vl": "several axes",
    "qwen2_5_vl": "several axes",
    "qwen3_vl": "several axes",
    "mllama": "images outside",
}
NEW = 4


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_it_cannot_decode_is_refused(name):
    with pytest.raises(UnsupportedError, match=REFUSED[name]):
        GraphDecoder(FAMILIES[name].model(), None, NEW)


@pytest.mark.parametrize("batch", ["one", "left-padded"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in REFUSED])
def test_the_tokens_are_those_of_generate(name, batch):
    model, inputs = FAMILIES[name].model(), FAMILIES[name].batch(batch)
    dense = answer(model, inputs, new=NEW).tokens
    assert torch.equal(GraphDecoder(model, None, NEW, len(dense)).generate(inputs, NEW), dense)
    with coremat.apply(model, config_of(name)) as session:
        sparse = answer(model, inputs, new=NEW).tokens
        assert torch.equal(GraphDecoder(model, session, NEW, len(sparse)).generate(inputs, NEW), sparse)
