"""The schedule of a method against what a real prefill saw and left in its caches, and by hand."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from configs import BEFORE_DECODER, CONFIGS
from tiny import BATCHES, LAYERS, PER_IMAGE, SHAPE, answer, make_inputs

import coremat
from coremat.cost.schedule import Schedule, budgets, has_knee
from coremat.errors import ConfigError
from coremat.methods.base import Method, Stage
from coremat.methods.registry import parse
from coremat.methods.views import LayerView

PROMPT = BATCHES["one"][0]
TEXT = len(PROMPT) - 1


@dataclass(frozen=True, kw_only=True)
class InStages(Method):
    """Several budgets, each with its own way of treating earlier caches: (layers before it, tokens, cache)."""

    plan: str = ""

    def stages(self, layers: int) -> Sequence[Stage]:
        parts = [part.split("/") for part in self.plan.split(" ")]
        return [Stage(int(after), int(keep), earlier_cache=cache) for after, keep, cache in parts]

    def score(self, stage: Stage, layer: LayerView) -> torch.Tensor:
        return layer.keys.norm(dim=-1).mean(1)


PLANS = (
    "1/9/full 3/5/full",
    "1/9/cut 3/5/full",
    "1/9/full 3/5/cut",
    "1/9/cut 3/5/cut",
    "1/9/full 2/7/cut 4/3/full",
)
METHODS = {
    **{name: parse(spec) for name, spec in (CONFIGS | BEFORE_DECODER).items()},
    **{plan: InStages(plan=plan) for plan in PLANS},
}


def ran(model, method):
    """The figures of one sequence, and the positions that each layer's cache holds after the prefill."""
    with coremat.apply(model, method) as session:
        cache = answer(model, make_inputs(PROMPT), new=1).cache
        return session.stats[0], tuple(layer.keys.shape[2] for layer in cache.layers)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_it_is_what_a_prefill_sees_and_leaves(model, method):
    stats, held = ran(model, method)
    kept = [stats.tokens_per_layer[stage.after] - TEXT for stage in method.pruning_stages(LAYERS)]
    schedule = Schedule.of(method, LAYERS, SHAPE, PER_IMAGE, TEXT, kept)
    assert schedule.tokens == stats.tokens_per_layer
    assert schedule.cached == stats.cached_per_layer == held
    assert schedule.neurons == stats.neurons_kept
    assert schedule.image_tokens_kept == stats.image_tokens_kept
    assert schedule.prompt_tokens == stats.prompt_tokens


# Pooling keeps the largest grid within its budget.
EXACT = [name for name, method in METHODS.items() if name != "pooling" and not has_knee(method, LAYERS)]


@pytest.mark.parametrize("name", EXACT)
def test_budgets_say_what_will_be_kept(model, name):
    stats, held = ran(model, METHODS[name])
    schedule = Schedule.of(METHODS[name], LAYERS, SHAPE, PER_IMAGE, TEXT)
    assert (schedule.tokens, schedule.cached) == (stats.tokens_per_layer, held)


def test_a_later_cut_reaches_the_layers_before_an_earlier_stage():
    """Layer 0, layer 1, layers 2 and 3, layers 4 and 5 of the last plan, by hand."""
    schedule = Schedule.of(InStages(plan=PLANS[-1]), LAYERS, SHAPE, PER_IMAGE, TEXT)
    assert schedule.tokens == tuple(TEXT + n for n in (16, 9, 7, 7, 3, 3))
    assert schedule.cached == tuple(TEXT + n for n in (7, 7, 7, 7, 3, 3))


def test_a_knee_keeps_all_where_nothing_is_known_of_it():
    method = parse("corematching")
    assert has_knee(method, LAYERS)
    assert budgets(method, LAYERS, 16) == [None]
    assert Schedule.of(method, LAYERS, SHAPE, 16, TEXT).cached == (16 + TEXT,) * LAYERS
    assert Schedule.of(method, LAYERS, SHAPE, 16, TEXT, [5]).cached == (5 + TEXT,) * LAYERS


def test_a_prompt_without_an_image_loses_nothing():
    assert Schedule.of(parse("fastv"), LAYERS, SHAPE, 0, 7).tokens == (7,) * LAYERS


@pytest.mark.parametrize(
    ("spec", "image_tokens", "text_tokens", "kept", "message"),
    [
        ("dense", 16, 4, [5], "kept has 1 counts; accepted: 0, one for each stage"),
        ("fastv", 16, 4, [], "kept has 0 counts; accepted: 1"),
        ("fastv", 16, 4, [17], "image_tokens_kept is 17; accepted: up to 16"),
        ("fastv", 16, 4, [-1], "image_tokens_kept is -1; accepted: a whole number, at least 0"),
        ("fastv", 16, 0, None, "text_tokens is 0; accepted: a whole number, at least 1"),
        ("fastv", 1.5, 4, None, "image_tokens is 1.5; accepted"),
        ("fastv:prune_layer=6", 16, 4, None, "fastv prunes after 6 decoder layers; accepted .* 6 layers: 1 to 5"),
    ],
)
def test_what_cannot_be_is_refused(spec, image_tokens, text_tokens, kept, message):
    with pytest.raises(ConfigError, match=message):
        Schedule.of(parse(spec), LAYERS, SHAPE, image_tokens, text_tokens, kept)
