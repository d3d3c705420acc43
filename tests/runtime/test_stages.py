"""Several stages in one prefill, each with a budget, positions and caches of its own, held against hiding."""

from itertools import pairwise

import pytest
import torch
from equivalence import both, compare, second_turn
from staged import ANYWHERE, RESTARTING, STAGED, FromTheInput, Merging, Staged
from tiny import BATCHES, LAYERS, answer, batch, chosen, make_inputs

import coremat
from coremat.errors import ConfigError, UnsupportedError
from coremat.methods.base import Reduction, Stage
from coremat.testing.dense_reference import merged_states
from coremat.testing.families import FAMILIES


@pytest.mark.parametrize("attention", ["model", "eager_model"])
@pytest.mark.parametrize("name", ["one", "left-padded", "ragged"])
@pytest.mark.parametrize("stages", STAGED)
def test_dropped_equals_hidden(request, errors, attention, name, stages):
    model = request.getfixturevalue(attention)
    compare(model, batch(name), STAGED[stages], errors, f"{attention}, {name}, {stages}")


def test_a_row_that_keeps_its_whole_width_beside_full_caches(model, errors):
    """As many columns then in every layer, of which the shorter row's are not all tokens behind the stage."""
    inputs = make_inputs(BATCHES["one"][0], [1, *range(40, 59)])
    stats = compare(model, inputs, Staged(Stage(2, 4, earlier_cache="full")), errors, "whole width, full caches")
    assert [row.prompt_tokens for row in stats] == [20, 20]


@pytest.mark.parametrize("name", ["one", "ragged"])
def test_places_hold_what_was_merged(model, name):
    """The dense model's hidden states in that layer; one place more than the budget."""
    inputs = batch(name)
    with torch.no_grad():
        dense = model(**inputs, output_hidden_states=True).hidden_states[2]
    with coremat.apply(model, Merging(Stage(2, 4))) as session, merged_states(session) as merged:
        answer(model, inputs, new=1)
        choice = chosen(session, merged)
    where, held = choice.merged[2]
    for row, image in enumerate(choice.images >= 0):
        assert where[row].sum() == image.any() == int((choice.keep[row] & image).sum() > 4)
        if image.any():
            dropped = image & (~choice.keep[row] | where[row])
            assert dropped.nonzero()[0, 0] == where[row].nonzero()[0, 0]
            torch.testing.assert_close(held[row, where[row]][0], dense[row, dropped].mean(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("stages", STAGED)
def test_a_second_turn_and_beams(model, errors, stages):
    compare(model, batch("ragged"), STAGED[stages], errors, f"second turn, {stages}", run=second_turn)
    sparse, dense = both(model, STAGED[stages], lambda: answer(model, batch("left-padded"), new=4, num_beams=3))
    assert torch.equal(sparse.tokens, dense.tokens)


@pytest.mark.parametrize("stages", STAGED)
def test_padding_that_every_row_has(model, errors, stages):
    inputs = make_inputs(*BATCHES["same-length"], extra_padding=3)
    compare(model, inputs, STAGED[stages], errors, f"padding, {stages}")


@pytest.mark.parametrize("stages", STAGED)
def test_several_tokens_at_once_behind_the_prompt(model, stages):
    """As a reader of a second turn gives them: in one pass they see what they see one after the other."""
    inputs, more = batch("ragged"), torch.tensor([[50, 51, 52]]).expand(3, -1)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 3), value=1)

    def read(*pieces):
        cache, logits, seen = model(**inputs).past_key_values, [], mask.shape[1] - 3
        for piece in pieces:
            seen += piece.shape[1]
            given = {"input_ids": piece, "attention_mask": mask[:, :seen], "past_key_values": cache}
            logits.append(model(**given).logits)
        return torch.cat(logits, 1)

    with coremat.apply(model, STAGED[stages]), torch.no_grad():
        torch.testing.assert_close(read(more), read(*more.split(1, 1)), rtol=0, atol=2e-5)


@pytest.mark.parametrize("stages", STAGED)
def test_half_precision(half_model, stages):
    sparse, dense = both(half_model, STAGED[stages], lambda: answer(half_model, batch("ragged", torch.bfloat16), new=1))
    assert (sparse.logits - dense.logits).abs().max() < 0.1


@pytest.mark.parametrize("stages", STAGED)
def test_a_row_gets_what_it_gets_alone(exact_model, stages):
    with coremat.apply(exact_model, STAGED[stages]) as session:
        together = answer(exact_model, batch("ragged", torch.float64))
        stats = session.stats
        for row, prompt in enumerate(BATCHES["ragged"]):
            alone = answer(exact_model, make_inputs(prompt, dtype=torch.float64))
            torch.testing.assert_close(alone.logits[0], together.logits[row], rtol=1e-9, atol=1e-9)
            assert session.stats[0].kept == stats[row].kept
            assert session.stats[0].tokens_per_layer == stats[row].tokens_per_layer
            assert session.stats[0].cached_per_layer == stats[row].cached_per_layer


@pytest.mark.parametrize("stages", STAGED)
def test_no_stage_brings_back_what_an_earlier_one_dropped(model, stages):
    with coremat.apply(model, STAGED[stages]) as session:
        answer(model, batch("ragged"), new=1)
        choice = chosen(session)
    order = [choice.valid, *(choice.stages[after] for after in sorted(choice.stages))]
    assert len(order) > 1
    assert all((later <= earlier).all() for earlier, later in pairwise(order))


# Of 16 image tokens in a layer's prefill and in its cache, layer by layer.
IMAGE_TOKENS = {
    "two": ([16, 9, 9, 3, 3, 3], [3] * 6),
    "three": ([16, 12, 8, 8, 8, 2], [2] * 6),
    "two, full caches": ([16, 9, 9, 3, 3, 3], [16, 9, 9, 3, 3, 3]),
    "full, then cut": ([16, 16, 9, 9, 3, 3], [3] * 6),
    "cut, then full": ([16, 16, 9, 9, 3, 3], [9, 9, 9, 9, 3, 3]),
    "cut, full, cut": ([16, 12, 8, 8, 2, 2], [2] * 6),
    "none, then a count": ([16, 16, 16, 3, 3, 3], [3] * 6),
    "the input and two layers": ([11, 11, 8, 8, 2, 2], [8, 8, 8, 8, 2, 2]),
    "merging": ([16, 16, 5, 5, 5, 5], [5] * 6),
    "merging twice": ([16, 10, 10, 4, 4, 4], [4] * 6),
    "restart twice": ([16, 11, 8, 8, 2, 2], [8, 8, 8, 8, 2, 2]),
    "restart at the input and later": ([11, 11, 8, 8, 2, 2], [2] * 6),
}


@pytest.mark.parametrize("stages", IMAGE_TOKENS)
def test_every_stage_spends_its_own_budget(model, stages):
    """A share is one of the whole prompt's image tokens, whatever an earlier stage left."""
    seen, cached = IMAGE_TOKENS[stages]
    with coremat.apply(model, STAGED[stages]) as session:
        cache = answer(model, batch("one"), new=1).cache
        (row,) = session.stats
    text = row.prompt_tokens - 16
    assert [tokens - text for tokens in row.tokens_per_layer] == seen
    assert [tokens - text for tokens in row.cached_per_layer] == cached
    assert [layer.keys.shape[2] - text for layer in cache.layers] == cached
    assert cache.get_seq_length() == row.prompt_tokens
    assert row.image_tokens_kept == len(row.kept) == seen[-1]


def test_an_image_keeps_a_token_at_every_stage(model):
    with coremat.apply(model, Staged(Stage(1, 4), Stage(3, 1))) as session:
        answer(model, make_inputs([1, "image", 33, "image", 34]), new=1)
        (row,) = session.stats
    assert {place // 16 for place in row.kept} == {0, 1}


@pytest.mark.parametrize("stages", RESTARTING)
def test_positions_that_restart_change_the_answer(model, stages):
    """Or else nothing would be held above."""
    method = RESTARTING[stages]
    original = [Stage(s.after, s.keep, "original", s.earlier_cache) for s in method.written]
    with coremat.apply(model, method):
        restarted = answer(model, batch("one"))
    with coremat.apply(model, type(method)(*original)):
        assert (answer(model, batch("one")).logits - restarted.logits).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_positions_of_several_axes_cannot_restart(name, after):
    method, words = FromTheInput(Stage(after, 0.5, "restart")), "restarts positions, which have several axes in Qwen"
    with pytest.raises(UnsupportedError, match=words):
        coremat.apply(FAMILIES[name].model(), method).__enter__()


def test_layers_of_one_kept_set_share_a_group(model):
    with coremat.apply(model, STAGED["cut, then full"]) as session:
        answer(model, batch("one"), new=1)
        assert [group.layers for group in session.groups] == [(0, 1, 2, 3), (4, 5)]
        assert [group.kept.width for group in session.groups] == [4 + 9, 4 + 3]


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ([Stage(2, 0.5), Stage(2, 3)], r"staged has stages after layers \[2, 2\]; accepted: in ascending order"),
        ([Stage(3, 0.5), Stage(1, 3)], r"stages after layers \[3, 1\]"),
        ([Stage(1, 0.5), Stage(LAYERS, 3)], f"prunes after {LAYERS} decoder layers; .* 1 to {LAYERS - 1}"),
        ([Stage(0, 0.5)], "has a stage after 0 layers and no before_projector or before_decoder"),
    ],
)
def test_stages_that_cannot_be(model, written, words):
    with pytest.raises(ConfigError, match=words):
        coremat.apply(model, Staged(*written)).__enter__()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"after": -1, "keep": 4}, "after is -1; accepted: a whole number, at least 0"),
        ({"after": 1, "keep": 0}, "keep is 0; accepted: knee, all, a count of at least 1, a share"),
        ({"after": 1, "keep": 1.5}, "keep is 1.5"),
        ({"after": 1, "keep": 4, "positions": "new"}, "positions is 'new'; accepted: auto, original, restart"),
        ({"after": 1, "keep": 4, "earlier_cache": "half"}, "earlier_cache is 'half'; accepted: cut, full"),
    ],
)
def test_a_stage_out_of_range(options, words):
    with pytest.raises(ConfigError, match=words):
        Stage(**options)


class Scored(Staged):
    def __init__(self, given):
        super().__init__(Stage(2, 4))
        self.given = given

    def score(self, stage, layer):
        return self.given(layer)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda layer: layer.keys.norm(dim=-1).mean(1)[:, 1:], r"gave scores \(1, 19\) after layer 1; accepted: a ten"),
        (lambda layer: [1.0], "gave scores list after layer 1; accepted: a tensor"),
        (lambda layer: torch.full(layer.valid.shape, torch.nan), "scores of 16 image tokens are NaN or infinite"),
        (lambda layer: layer.part("logits"), "logits is read, which LayerView has not here; there are: "),
    ],
)
def test_scores_that_are_none(model, given, words):
    with coremat.apply(model, Scored(given)), pytest.raises(UnsupportedError, match=words):
        answer(model, batch("one"))


class Misfit(Merging):
    def __init__(self, given):
        super().__init__(Stage(2, 4))
        self.given = given

    def recycle(self, stage, hidden, scores, keep):
        return self.given(hidden, keep)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda hidden, keep: Reduction(keep[1:]), r"keeps torch.bool \(15,\) .* accepted: bool \(16,\)"),
        (lambda hidden, keep: Reduction(keep.float()), r"keeps torch.float32 \(16,\)"),
        (lambda hidden, keep: Reduction(keep, hidden[1:]), r"merges into \(15, 64\); accepted: \(16, 64\)"),
    ],
)
def test_merging_that_does_not_fit(model, given, words):
    with coremat.apply(model, Misfit(given)), pytest.raises(UnsupportedError, match=words):
        answer(model, batch("one"))


def test_every_kind_of_stage_is_here():
    written = [stage for method in STAGED.values() for stage in getattr(method, "tokens", method).written]
    assert {stage.positions for stage in written} == {"original", "restart", "auto"}
    assert {stage.earlier_cache for stage in written} == {"cut", "full"}
    assert set(ANYWHERE).isdisjoint(RESTARTING)
