"""A method pays for what it reads, and for nothing else: what is hooked, and how often what is costly is computed."""

from collections import Counter

import pytest
from staged import Staged
from tiny import LAYERS, answer, batch

import coremat
from coremat.methods import views
from coremat.methods.base import Stage
from coremat.methods.corematching import core_neurons
from coremat.models.families import adapter_for


@pytest.fixture
def calls(monkeypatch):
    """How often votes were counted, and attention was computed."""
    counts = Counter()

    def counting(owner, name):
        whole = getattr(owner, name)

        def counted(*args):
            counts[name] += 1
            return whole(*args)

        monkeypatch.setattr(owner, name, counted)

    counting(core_neurons, "votes")
    counting(views, "attention_weights")
    return counts


@pytest.mark.parametrize(
    ("method", "votes", "attention"),
    [
        ("dense", 0, 0),
        ("fastv", 0, 1),
        ("attention-tokens", 0, 1),
        ("projection-tokens", 0, 1),
        ("core-tokens", 1, 0),
        ("core-tokens:tokens=all", 0, 0),
        ("fewest-core-tokens", 1, 0),
        ("random-tokens", 1, 0),  # as many as core-tokens keeps
        ("random-tokens:tokens=5", 0, 0),
        ("core-neurons", LAYERS, 0),
        ("corematching", LAYERS, 0),  # those of layer 1 serve the choice of tokens too
        ("fastv+core-neurons", LAYERS, 1),
        ("core-tokens+core-neurons", LAYERS, 0),
        ("core-tokens:alpha=0.3+core-neurons", LAYERS + 1, 0),  # other votes than the neurons'
        ("random-neurons", 0, 0),
        ("oracle-neurons", 0, 0),
        ("corematching-released", 0, 0),
        ("divprune:tokens=4", 0, 0),
        ("visionzip:tokens=4", 0, 0),
    ],
)
def test_votes_and_attention_are_computed_once_for_those_who_read_them(model, calls, method, votes, attention):
    with coremat.apply(model, method):
        answer(model, batch("left-padded"), new=3)
    assert (calls["votes"], calls["attention_weights"]) == (votes, attention)


def test_attention_is_computed_at_every_stage_that_reads_it(model, calls):
    class Attentive(Staged):
        def score(self, stage, layer):
            return layer.attention("last").mean((1, 2)) + 0 * layer.attention("last").amax((1, 2))

    with coremat.apply(model, Attentive(Stage(1, 8), Stage(3, 4))):
        answer(model, batch("one"), new=3)
    assert calls["attention_weights"] == 2


def hooks_of(model):
    """How many hooks there are on each kind of module, and how many forwards are replaced."""
    adapter, counts = adapter_for(model), Counter()
    tower = list(adapter.vision_layers)
    kinds = [
        ("model", [model]),
        ("decoder", [adapter.decoder]),
        ("projector", [adapter.vision[1]]),
        ("tower layers", tower),
        (
            "tower queries and keys",
            [getattr(layer.self_attn, name) for layer in tower for name in ("q_proj", "k_proj")],
        ),
        ("layers", adapter.layers),
        ("attention", [layer.self_attn for layer in adapter.layers]),
        ("down_proj", [layer.mlp.down_proj for layer in adapter.layers]),
    ]
    counts |= {kind: sum(_hooks(module) for module in modules) for kind, modules in kinds}
    counts["other"] = sum(map(_hooks, model.modules())) - counts.total()
    counts["ffn"] = sum("forward" in layer.mlp.__dict__ for layer in adapter.layers)
    return counts


def _hooks(module):
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


CUTTING = {"model": 2, "layers": LAYERS}  # outputs by position; masks, positions and tokens of each layer
SCORED = {"attention": 1, "down_proj": 1}  # what the one layer before a stage can show
TOWER = {"tower layers": 1, "tower queries and keys": 2, "projector": 1}
HOOKS = {
    "dense": {},
    "corematching:tokens=all": {"down_proj": LAYERS, "ffn": LAYERS},
    "core-neurons": {"down_proj": LAYERS, "ffn": LAYERS},
    "random-neurons": {"down_proj": LAYERS, "ffn": LAYERS},
    "oracle-neurons": {"ffn": LAYERS},
    "two-level": {"down_proj": LAYERS, "ffn": LAYERS},
    "wina": {},
    "core-tokens": CUTTING | SCORED,
    "core-tokens:tokens=all": {},
    "fastv": CUTTING | SCORED,
    "corematching": CUTTING | SCORED | {"down_proj": LAYERS, "ffn": LAYERS},
    "corematching-released": {"down_proj": LAYERS, "layers": LAYERS},
    "divprune": CUTTING | {"decoder": 1},
    "uniform-tokens": CUTTING | {"decoder": 1},
    "visionzip": CUTTING | TOWER | {"decoder": 1},
    "prumerge": CUTTING | TOWER | {"decoder": 1},
}


@pytest.mark.parametrize("method", HOOKS)
def test_nothing_is_hooked_that_no_slot_needs(model, method):
    """Beside `generate` and `forward`, and the decoder: its end, where the cache is looked at, and its beginning, where
    a forward that did not come through them is refused."""
    answer(model, batch("one"), new=1)  # transformers adds some of its own at the first call
    before = hooks_of(model)
    with coremat.apply(model, method):
        found = hooks_of(model)
    found.subtract(before)
    assert {kind: count for kind, count in found.items() if count} == Counter(HOOKS[method]) + Counter(decoder=2)


@pytest.mark.parametrize("method", ["dense", "fastv", "corematching:positions=restart", "visionzip:tokens=4"])
def test_seeds_are_made_for_those_who_draw(model, monkeypatch, method):
    def drawn(*args):
        raise AssertionError("nobody draws")

    monkeypatch.setattr("coremat.runtime.input_checks.sample_seeds", drawn)
    with coremat.apply(model, method):
        answer(model, batch("one"), new=2)
