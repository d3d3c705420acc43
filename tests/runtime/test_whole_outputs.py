"""What a call of the model gives by position, where tokens were dropped: places for all, NaN where there is nothing."""

import pytest
import torch
from equivalence import both
from tiny import VOCABULARY, batch, chosen

import coremat

METHODS = ["corematching:tokens=5", "fastv", "visionzip:tokens=5", "corematching:positions=restart"]


def called(model, inputs, **options):
    with torch.no_grad():
        return model(**inputs, **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["one", "left-padded", "ragged"])
@pytest.mark.parametrize("wanted", [0, 1, 3])
def test_logits_stand_at_the_places_of_their_tokens(model, method, name, wanted):
    inputs = batch(name)
    with coremat.apply(model, method) as session:
        called(model, inputs)
        keep, valid = chosen(session).keep, chosen(session).valid
    sparse, dense = both(model, method, lambda: called(model, inputs, logits_to_keep=wanted).logits)
    shown = slice(-wanted, None) if wanted else slice(None)
    assert sparse.shape == (len(keep), wanted or keep.shape[1], VOCABULARY)
    assert torch.equal(sparse.isnan().all(-1), sparse.isnan().any(-1))
    assert torch.equal(sparse.isnan().all(-1), (valid & ~keep)[:, shown])
    torch.testing.assert_close(sparse[keep[:, shown]], dense[keep[:, shown]], rtol=0, atol=2e-5)


def test_chosen_places_of_the_logits(model):
    inputs, places = batch("one"), torch.tensor([0, 4, 19])
    with coremat.apply(model, "corematching:tokens=5"):
        whole, some = called(model, inputs).logits, called(model, inputs, logits_to_keep=places).logits
    torch.testing.assert_close(some, whole[:, places], rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("labelled", [False, True])
def test_a_tuple_holds_the_same(model, labelled):
    inputs = batch("ragged")
    labels = {"labels": inputs["input_ids"]} if labelled else {}
    with coremat.apply(model, "corematching:tokens=5"):
        named, *given = called(model, inputs, **labels), *called(model, inputs, **labels, return_dict=False)
    assert named.logits.isnan().any()
    torch.testing.assert_close(given[labelled], named.logits, rtol=0, atol=0, equal_nan=True)
    if labelled:
        assert given[0] == named.loss


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_is_over_the_tokens_that_stayed(model, method):
    """Each of them against the label of the next place, as in the masked dense model."""
    inputs = batch("left-padded")
    valid = inputs["attention_mask"].bool()
    labels = torch.where(valid & valid.roll(1, 1), inputs["input_ids"], -100)  # a first token is nobody's next one
    given = labels.clone()

    def run():
        out = called(model, inputs, labels=given)
        return out.loss, out.logits

    with coremat.apply(model, method) as session:
        called(model, inputs)
        keep = chosen(session).keep
    (loss, _), (_, dense) = both(model, method, run)
    counted = keep[:, :-1] & (labels[:, 1:] != -100)
    wanted = torch.nn.functional.cross_entropy(dense[:, :-1][counted], labels[:, 1:][counted])
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(given, labels)  # the caller's own stay


def test_the_decoders_last_hidden_states_have_a_place_for_every_token(model):
    """Zeros for dropped ones, also where a row of fewer tokens than its neighbours is filled up."""
    inputs = batch("ragged")
    with coremat.apply(model, "corematching:tokens=5") as session:
        hidden = called(model.model, inputs).last_hidden_state
        choice = chosen(session)
    assert hidden.shape[:2] == choice.keep.shape
    assert torch.equal(hidden.any(-1)[choice.valid], choice.keep[choice.valid])
