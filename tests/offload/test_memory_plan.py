"""The plan of memory against what a model, a session and a prefill really take."""

import weakref
from contextlib import nullcontext

import pytest
import torch
from tiny import IMAGE_ID, LAYERS, answer, batch, tiny_llava
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import coremat
from coremat.cost.schedule import Schedule
from coremat.errors import ConfigError, UnsupportedError
from coremat.methods.corematching.votes import token_core_neurons
from coremat.methods.registry import parse
from coremat.models.shape import DecoderShape
from coremat.offload.ffn_streaming import offloaded_ffn
from coremat.offload.plan import CHOOSING, MemoryPlan, parse_bytes


def plan_for(model, spec="dense", name="one", kept=None, **options):
    """kept: image tokens after each stage, of all sequences alike."""
    ids = batch(name)["input_ids"]
    images = int((ids == IMAGE_ID).sum(1).max())
    text, config = ids.shape[1] - images, model.config.get_text_config()
    sizes = config.num_hidden_layers, DecoderShape.of(config), images, text
    method = parse(spec)
    return MemoryPlan.of(model, method, Schedule.of(method, *sizes, kept), len(ids), **options)


def bytes_of(*tensors):
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


# --- the parts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [{}, {"tie_word_embeddings": True}, {"mlp_bias": True, "num_hidden_layers": 3}])
def test_weights_are_those_of_the_model(text):
    model = tiny_llava(**text)
    plan, inner = plan_for(model), model.model
    layers = inner.language_model.layers
    ffn = [part.weight for layer in layers for part in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj)]
    assert plan.ffn == bytes_of(*ffn)
    assert plan.embedding == bytes_of(inner.language_model.embed_tokens.weight, model.lm_head.weight)
    vision = [inner.vision_tower, inner.multi_modal_projector]
    assert plan.vision == bytes_of(*[t for module in vision for t in (*module.parameters(), *module.buffers())])
    assert plan.outside_ffn + plan.ffn == bytes_of(*model.parameters(), *model.buffers())


def test_a_model_that_is_not_made_yet_has_the_same_plan(model):
    with torch.device("meta"):
        unmade = tiny_llava()
    assert plan_for(unmade, "corematching") == plan_for(model, "corematching")


def test_another_dtype(model, half_model):
    assert plan_for(model, "corematching", dtype=torch.bfloat16) == plan_for(half_model, "corematching")


METHODS = {
    "paper": "corematching",
    "small": "corematching:beta=0.21",
    "one-set": "corematching:neuron_sets=batch",
    "random": "random-tokens:tokens=5+random-neurons",
    "token-only": "core-tokens:tokens=5",
    "neuron-only": "core-neurons",
    "full-caches": "fastv:tokens=5",
    "before-the-decoder": "divprune:tokens=5",
    "each-token": "oracle-neurons",
}


@pytest.mark.parametrize("name", ["one", "ragged"])
@pytest.mark.parametrize("spec", METHODS.values(), ids=METHODS)
def test_workspace_buffers_and_cache_of_an_offloaded_session(model, spec, name):
    with offloaded_ffn(model, "cpu") as moved, coremat.apply(model, spec) as session:
        cache = answer(model, batch(name), new=4).cache
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        widths = [segment.kept.width for segment in session.prompt.segments]
        plan = plan_for(model, spec, name, kept=kept_of(session), new_tokens=3)
        assert plan.workspace == session.workspace_bytes
        assert plan.buffers == moved.buffer_bytes
    # The last new token is never fed, and while few are, what the prefill's first layers hold is more.
    column = held // sum(layer.keys.shape[2] for layer in cache.layers)
    starts = [segment.first for segment in session.prompt.segments]
    prefill = sum(
        width * (end - start) for width, start, end in zip(widths, starts, [*starts[1:], LAYERS], strict=True)
    )
    assert plan.kv_cache == max(held, column * prefill)


def kept_of(session) -> list[int]:
    """Columns that each stage left beyond those that are text in the fullest sequence."""
    whole, *stages = [segment.kept.width for segment in session.prompt.segments]
    images = max(session.prompt.image_tokens)
    return [width - (whole - images) for width in stages]


def test_choosing_is_counted_where_activations_are_shown(model):
    shown = [spec for spec in METHODS.values() if plan_for(model, spec).choosing]
    assert set(METHODS.values()) - set(shown) == {"divprune:tokens=5", "oracle-neurons"}
    assert plan_for(model, "corematching-released").choosing
    assert not plan_for(model).choosing


def test_the_cache_of_an_unknown_knee_is_the_dense_one(model):
    assert plan_for(model, "corematching", new_tokens=7).kv_cache == plan_for(model, new_tokens=7).dense_kv_cache


# --- activations, measured --------------------------------------------------------------------------------------


class Peak(TorchDispatchMode):
    """The most bytes that were alive at once in storages made inside the block."""

    def __init__(self, *known):
        super().__init__()
        self.alive, self.most = {t.untyped_storage()._cdata: 0 for t in known}, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        for storage in [t.untyped_storage() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]:
            if storage._cdata not in self.alive:
                self.alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage._cdata)
        self.most = max(self.most, sum(self.alive.values()))
        return out


@pytest.mark.parametrize("method", [None, "corematching", "core-tokens"], ids=["dense", "both", "tokens"])
def test_a_prefill_stays_within_the_plan(method):
    """A model as wide in its FFN as real ones are, beside its attention and its head."""
    model, inputs = tiny_llava(hidden_size=256, intermediate_size=704, num_attention_heads=4), batch("ragged")
    with torch.no_grad(), coremat.apply(model, method) if method else nullcontext():
        model(**inputs)  # makes the workspace
        with Peak(*model.parameters(), *model.buffers(), *inputs.values()) as peak:
            model(**inputs)
    plan = plan_for(model, method or "dense", "ragged", new_tokens=0)
    room = plan.activations + plan.choosing + plan.kv_cache
    assert room / 3 < peak.most < room


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_choosing_in_plain_operations_stays_within_the_plan(dtype):
    activations = torch.randn(64, 1376, generator=torch.Generator().manual_seed(1)).to(dtype)
    with Peak(activations) as peak:
        token_core_neurons(activations, 0.2)
    assert CHOOSING / 2 < peak.most / activations.numel() < CHOOSING


# --- questions --------------------------------------------------------------------------------------------------

PLAN = MemoryPlan(
    layers=10,
    attention=100,
    embedding=20,
    vision=30,
    ffn=1000,
    workspace=400,
    buffers=200,
    kv_cache=5,
    dense_kv_cache=50,
    activations=7,
    choosing=3,
)


def test_sums():
    assert PLAN.outside_ffn == 150
    assert PLAN.needed == 765
    assert PLAN.dense == 1207


def test_whether_dense_fits():
    assert PLAN.dense_fits(1207)
    assert not PLAN.dense_fits(1206)


@pytest.mark.parametrize(
    ("limit", "layers"),
    [(1, 0), (765, 0), (864, 0), (865, 1), (1264, 4), (1265, 5), (1464, 6), (1564, 7), (1565, 10), (10**6, 10)],
)
def test_resident_layers(limit, layers):
    """Each takes 100 beside the 765; ten of them without buffers are there as soon as eight with buffers would be."""
    assert PLAN.resident_layers(limit) == layers


def test_a_limit_that_is_enough():
    PLAN.check(765)


def test_a_limit_that_is_too_small_says_what_is_needed():
    plan = MemoryPlan(32, *(10**9 * n for n in (4, 1, 1, 9, 3, 1, 1, 2, 1, 1)))
    with pytest.raises(UnsupportedError) as error:
        plan.check(8 * 10**9)
    assert str(error.value) == (
        "the memory limit is 8.00 GB, but this model needs 13.00 GB: weights outside the FFNs 6.00 GB, "
        "core rows 3.00 GB, buffers 1.00 GB, KV cache 1.00 GB, activations 2.00 GB."
    )


# --- limits as users write them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("12GB", 12 * 10**9),
        ("12GiB", 12 * 2**30),
        ("500MB", 5 * 10**8),
        ("1.5 MiB", 3 * 2**19),
        (" 11.5gb ", 11_500_000_000),
        ("0.3GB", 300_000_000),
    ],
)
def test_parse_bytes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "12", "GB", "12 KB", "12TB", "0GB", "0.0MiB", "-3GB", "1e3GB", "nanGB", "infGB", "1,5GB", "1..5GB", "٣GB"],
)
def test_parse_bytes_refuses(text):
    with pytest.raises(ConfigError) as error:
        parse_bytes(text)
    accepted = "accepted: a number above 0 with GB, GiB, MB or MiB, as in 12GB."
    assert str(error.value) == f"memory limit is {text!r}; {accepted}"
