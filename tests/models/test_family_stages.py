"""Several stages in one prefill, and the rivals, on every family whose tokens can be pruned."""

import pytest
import torch
from equivalence import both, compare, second_turn
from staged import STAGED
from test_families import PRUNING, tiny
from tiny import answer

import coremat
from coremat.models.families import adapter_for
from coremat.testing.families import FAMILIES, PROMPTS

PLAIN = [name for name in PRUNING if adapter_for(tiny(name)).plain_positions]
ANYWHERE = ("three", "cut, then full", "auto", "the input and two layers", "merging twice", "with core neurons")
CASES = [
    *((name, stages) for name in PRUNING for stages in ANYWHERE),
    *((name, stages) for name in PLAIN for stages in ("restart twice", "restart behind the input")),
]
# One that has all: a choice at the input, positions that start anew where they can, caches of both kinds.
ALL = "the input and two layers"


@pytest.mark.parametrize(("name", "stages"), CASES)
def test_dropped_equals_hidden(errors, name, stages):
    compare(tiny(name), FAMILIES[name].batch("left-padded"), STAGED[stages], errors, f"{name}, {stages}", new=3)


RIVALS = ("fastv", "fastv:queries=all", "divprune:tokens=3", "uniform-tokens:tokens=3", "average-pooling:tokens=3")
AT_THE_TOWER = ("visionzip:tokens=6", "prumerge+:tokens=6:positions=original", "prumerge+core-neurons")
WITH_CLASS_TOKEN = [name for name in PRUNING if adapter_for(tiny(name)).vision_layers is not None]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, method) for name in PRUNING for method in RIVALS),
        *((name, method) for name in WITH_CLASS_TOKEN for method in AT_THE_TOWER),
    ],
)
def test_rivals(errors, name, method):
    stats = compare(tiny(name), FAMILIES[name].batch("left-padded"), method, errors, f"{name}, {method}", new=3)
    assert all(row.image_tokens_kept < row.image_tokens for row in stats if row.image_tokens)


@pytest.mark.parametrize("stages", [ALL, "merging twice"])
@pytest.mark.parametrize("name", PRUNING)
def test_dropped_equals_hidden_in_eager_attention(errors, name, stages):
    inputs = FAMILIES[name].batch("left-padded")
    compare(tiny(name, "eager"), inputs, STAGED[stages], errors, f"{name}, {stages}, eager", new=3)


@pytest.mark.parametrize(
    ("name", "batch"),
    [(name, batch) for name in PRUNING for batch in ("several images", "video") if batch in FAMILIES[name].batches],
)
def test_several_images_and_videos(errors, name, batch):
    compare(tiny(name), FAMILIES[name].batch(batch), STAGED[ALL], errors, f"{name}, {ALL}, {batch}", new=3)


@pytest.mark.parametrize("name", PRUNING)
def test_a_second_turn_on_the_returned_cache(errors, name):
    inputs = FAMILIES[name].batch("one")
    compare(tiny(name), inputs, STAGED[ALL], errors, f"{name}, {ALL}, second turn", run=second_turn)


@pytest.mark.parametrize("name", PRUNING)
def test_beams(name):
    model, inputs = tiny(name), FAMILIES[name].batch("an image each")
    sparse, dense = both(model, STAGED[ALL], lambda: answer(model, inputs, new=3, num_beams=2))
    assert torch.equal(sparse.tokens, dense.tokens)


@pytest.mark.parametrize("name", PRUNING)
def test_a_batch_is_its_rows(name):
    """In float64, where the rounding that padding brings moves no choice."""
    family, model = FAMILIES[name], tiny(name, dtype=torch.float64)
    with coremat.apply(model, STAGED[ALL]) as session:
        together = answer(model, family.batch(family.rows, torch.float64), new=3)
        stats = session.stats
        for row, prompt in enumerate(PROMPTS[family.rows]):
            alone = answer(model, family.inputs([prompt], torch.float64), new=3)
            assert session.stats[0].kept == stats[row].kept
            assert (alone.logits[0] - together.logits[row]).abs().max() < 1e-5


@pytest.mark.parametrize("name", PRUNING)
def test_bfloat16(name):
    model, inputs = tiny(name, dtype=torch.bfloat16), FAMILIES[name].batch("left-padded", torch.bfloat16)
    sparse, dense = both(model, STAGED[ALL], lambda: answer(model, inputs, new=1))
    assert (sparse.logits - dense.logits).abs().max() < 0.2
