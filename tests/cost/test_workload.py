"""Counts by formula against PyTorch's own on the tiny model, against real models on the meta device, and by hand.

PyTorch's counter sees matrix products and the patch convolution, as the formulas do; the product in the rotary
embedding of some versions of transformers is taken off.
"""

from dataclasses import replace

import configs
import pytest
import torch
from tiny import BATCHES, BOS, IMAGE, LAYERS, NEURONS, PER_IMAGE, SHAPE, answer, make_inputs
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText

import coremat
from coremat.cost.model_size import ModelSize
from coremat.cost.schedule import Schedule
from coremat.cost.workload import Workload, decode_bound, prefill_bound
from coremat.errors import ConfigError, UnknownNameError, UnsupportedError
from coremat.methods.registry import parse
from coremat.models.architecture import shipped_config

PROMPT = BATCHES["one"][0]
TEXT = len(PROMPT) - 1
MIB = 2**20


def counted(model, **inputs) -> dict[str, int]:
    """Operations of each part of the model, as PyTorch counts them."""
    with torch.no_grad(), FlopCounterMode(display=False, depth=4) as counter:
        model(**inputs, logits_to_keep=1, use_cache=True)
    top = type(model).__name__ + "."
    parts = {name.removeprefix(top): sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    parts["decoder"] = parts["model.language_model"] - parts.get("model.language_model.rotary_emb", 0)
    return parts


def workload_of(size, spec, image_tokens, text_tokens, kept=None, **changes) -> Workload:
    schedule = Schedule.of(parse(spec), size.layers, size.shape, image_tokens, text_tokens, kept)
    return Workload(size, schedule, **changes)


def tiny_workload(model, spec="dense", kept=None, image_tokens=PER_IMAGE, text_tokens=TEXT, **changes) -> Workload:
    size = ModelSize.of(model.config)
    return workload_of(size, spec, image_tokens, text_tokens, kept, **({"dtype": "float32"} | changes))


def llava_7b(spec="dense", image_tokens=576, **changes) -> Workload:
    size = ModelSize.of(shipped_config("llava-1.5-7b"))
    return workload_of(size, spec, image_tokens, 34, **({"dtype": "float16"} | changes))


# --- against PyTorch ----------------------------------------------------------------------------------------------


def test_dense_prefill_and_vision_tower_are_what_pytorch_counts(eager_model):
    parts, workload = counted(eager_model, **make_inputs(PROMPT)), tiny_workload(eager_model)
    assert workload.prefill_flops == parts["decoder"] + parts["lm_head"]
    assert workload.size.tower_flops == parts["model.vision_tower"]
    assert workload.size.projector_flops == parts["model.multi_modal_projector"]
    assert workload.vision_flops == parts["model.vision_tower"] + parts["model.multi_modal_projector"]


def test_batches_are_what_pytorch_counts(eager_model):
    inputs = make_inputs(PROMPT, PROMPT, PROMPT)
    parts, workload = counted(eager_model, **inputs), tiny_workload(eager_model, batch_size=3)
    assert workload.prefill_flops == parts["decoder"] + parts["lm_head"]
    assert workload.vision_flops == parts["model.vision_tower"] + parts["model.multi_modal_projector"]


def test_several_images_are_what_pytorch_counts(eager_model):
    prompt = [BOS, IMAGE, 30, IMAGE, 31]
    parts = counted(eager_model, **make_inputs(prompt))
    workload = tiny_workload(eager_model, image_tokens=2 * PER_IMAGE, text_tokens=3)
    assert workload.vision_flops == parts["model.vision_tower"] + parts["model.multi_modal_projector"]
    assert workload.prefill_flops == parts["decoder"] + parts["lm_head"]


@pytest.mark.parametrize("name", ["paper", "core-neurons-count", "after-4", "token-only", "neuron-only", "full-caches"])
def test_sparse_prefill_and_its_cache_are_what_runs(eager_model, name):
    spec = configs.CONFIGS[name]
    with coremat.apply(eager_model, spec) as session:
        parts = counted(eager_model, **make_inputs(PROMPT))
        stats = session.stats[0]
    kept = [stats.image_tokens_kept for _ in parse(spec).pruning_stages(LAYERS)]
    workload = tiny_workload(eager_model, spec, kept)
    assert workload.prefill_flops == parts["decoder"] + parts["lm_head"]
    assert workload.kv_bytes() == stats.kv_bytes
    assert {workload.neurons} == set(stats.neurons_kept)


def test_decode_step_is_what_pytorch_counts(eager_model):
    cache = answer(eager_model, make_inputs(PROMPT), new=3).cache  # the third new token is not in it yet
    step = counted(eager_model, input_ids=torch.tensor([[7]]), past_key_values=cache)
    assert tiny_workload(eager_model).decode_flops(step=3) == step["decoder"] + step["lm_head"]


def test_cache_bytes_are_those_of_the_cache(eager_model):
    cache = answer(eager_model, make_inputs(PROMPT), new=3).cache
    held = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    workload = tiny_workload(eager_model)
    assert workload.kv_bytes(step=2) == held
    assert workload.kv_bytes() == held - 2 * workload.size.kv_values * 4


@pytest.mark.parametrize("name", ["llava-1.5-7b", "llava-1.5-13b", "shapes-llava"])
def test_parameters_are_those_of_the_model(name):
    config = shipped_config(name)
    size = ModelSize.of(config)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    inner, layers = model.model, model.model.language_model.layers
    assert size.parameters == parameters(model)
    assert size.tower == parameters(inner.vision_tower)
    assert size.projector == parameters(inner.multi_modal_projector)
    assert size.attention == sum(parameters(layer.self_attn) for layer in layers)
    assert size.ffn == sum(parameters(layer.mlp) for layer in layers)
    assert size.head == size.embedding == parameters(model.lm_head)


def parameters(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


# --- LLaVA-1.5 by hand --------------------------------------------------------------------------------------------


def test_weights_of_llava_7b_in_gigabytes():
    size = ModelSize.of(shipped_config("llava-1.5-7b"))
    assert [round(2 * part / 1e9, 2) for part in (size.attention, size.ffn, size.head)] == [4.29, 8.66, 0.26]


@pytest.mark.parametrize(("beta", "gigabytes"), [(1.0, 13.2), (0.4, 8.0), (0.2, 6.3)])
def test_bytes_of_a_decode_step_of_llava_7b(beta, gigabytes):
    workload = llava_7b(f"corematching:tokens=64:beta={beta}")
    assert workload.decode_weight_bytes / 1e9 == pytest.approx(gigabytes, abs=0.05)
    assert workload.decode_bytes(step=2) - workload.decode_weight_bytes == (64 + 34 + 2) * MIB // 2


def test_decode_bounds_of_llava_7b():
    limits = [decode_bound(llava_7b(), llava_7b(f"core-neurons:beta={beta}")) for beta in (0.4, 0.2)]
    assert limits == pytest.approx([1.65, 2.1], rel=0.03)


def test_prefill_bound_of_llava_7b():
    dense, sparse = llava_7b(), llava_7b("corematching:tokens=64")
    shares = (2 * 610 + 30 * 98) / (32 * 610)  # as if work grew with the number of tokens alone
    assert shares == pytest.approx(0.216, abs=0.008)
    assert 1 / prefill_bound(dense, sparse) == pytest.approx(shares, rel=0.03)
    assert prefill_bound(dense, sparse, vision=True) < prefill_bound(dense, sparse)
    assert prefill_bound(dense, dense, vision=True) == 1


def test_kv_cache_of_llava_7b_as_the_paper_counts_it():
    sparse = llava_7b("corematching:tokens=64")
    assert sparse.paper_kv_bytes / MIB == pytest.approx(48.99, abs=0.011)
    assert sparse.kv_bytes() == sparse.paper_kv_bytes
    in_float32 = replace(sparse, dtype="float32")
    assert in_float32.kv_bytes() == 2 * in_float32.paper_kv_bytes == 2 * sparse.paper_kv_bytes


def test_bytes_of_a_prefill_of_llava_7b():
    """Weights but for the embedding and the norms, and what each layer writes: all tokens in the first two."""
    read = 7_063_427_072 - 32_064 * 4096 - 65 * 4096
    written = 2 * 4096 * (2 * 610 + 30 * 98)
    sparse = llava_7b("corematching:tokens=64")
    assert (
        sparse.vision_bytes
        == replace(sparse, batch_size=3).vision_bytes
        == 2 * (sparse.size.tower + sparse.size.projector)
    )
    assert sparse.vision_bytes + sparse.prefill_bytes == 2 * (read + written)
    assert llava_7b("corematching:tokens=64", image_tokens=0).vision_bytes == 0


def test_memory_of_llava_7b():
    """FFN, cache, and what is left of 7.06 billion parameters."""
    dense, sparse = llava_7b(), llava_7b("corematching:tokens=64:beta=0.2")
    others = 2 * (7_063_427_072 - 32 * 3 * 4096 * 11_008)
    assert dense.ffn_bytes == 8256 * MIB
    assert sparse.ffn_bytes == 2 * 32 * 3 * 4096 * 2201
    assert dense.total_bytes == others + 8256 * MIB + 305 * MIB
    assert sparse.total_bytes == others + sparse.ffn_bytes + 49 * MIB
    assert sparse.memory_ratio(dense) == dense.total_bytes / sparse.total_bytes > 1.9
    assert sparse.prefill_resident_bytes == others + 8256 * MIB + 49 * MIB
    assert sparse.resident_bytes(step=10) == sparse.total_bytes + 5 * MIB


def test_flops_of_the_vision_tower_by_hand():
    """CLIP ViT-L/14 at 336 pixels: 576 patches and a class token, 24 layers that all run."""
    size = ModelSize.of(shipped_config("llava-1.5-7b"))
    layer = 577 * (4 * 1024 * 1024 + 2 * 1024 * 4096) + 2 * 577 * 577 * 1024
    assert size.image_tokens == 576
    assert size.tower_flops == 2 * (576 * 1024 * 588 + 24 * layer)
    assert size.projector_flops == 2 * 576 * (1024 * 4096 + 4096 * 4096)


def test_full_caches_of_the_first_layers_are_counted_layer_by_layer():
    """Two layers hold all 610 positions and thirty hold 98; without the option all hold 98."""
    full, cut = (llava_7b(f"fastv:tokens=64:earlier_cache={kind}") for kind in ("full", "cut"))
    column = 2 * 4096 * 2
    assert full.kv_bytes() == column * (2 * 610 + 30 * 98)
    assert cut.kv_bytes() == column * 32 * 98
    assert full.kv_bytes(3) - full.kv_bytes() == column * 32 * 3
    assert full.paper_kv_bytes == cut.paper_kv_bytes == cut.kv_bytes()
    assert full.prefill_flops == cut.prefill_flops
    assert full.decode_flops(1) - cut.decode_flops(1) == 2 * 4 * 512 * 4096
    assert full.decode_bytes(1) - cut.decode_bytes(1) == column * 2 * 512
    assert decode_bound(llava_7b(), full) < decode_bound(llava_7b(), cut)


# --- batches ------------------------------------------------------------------------------------------------------


def test_each_sequence_computes_its_own_neurons_and_shared_rows_are_read_once():
    spec = "corematching:tokens=64:beta=0.4"
    one, four = llava_7b(spec), llava_7b(spec, batch_size=4)
    union = replace(four, ffn_share=0.87)
    assert four.decode_flops() == union.decode_flops() == 4 * one.decode_flops()
    assert four.decode_bytes() - one.decode_bytes() == 3 * 99 * MIB // 2
    assert union.decode_bytes() - four.decode_bytes() == 2 * 32 * 3 * 4096 * (round(0.87 * 11008) - 4403)


def test_decode_flops_of_core_neurons():
    spared = 2 * 32 * 3 * 4096 * (11008 - 4403)
    assert llava_7b().decode_flops(5) - llava_7b("core-neurons:beta=0.4").decode_flops(5) == spared


# --- what a token reads -------------------------------------------------------------------------------------------

LAYER = 4 * 4096 * 4096 + 3 * 4096 * 11008  # numbers of the matrices of a layer


def test_a_predictor_counts_as_what_is_read_computed_and_resident():
    core, predicted = llava_7b("core-neurons:beta=0.2"), llava_7b("powerinfer:beta=0.2:rank=1024")
    own = 32 * 1024 * (4096 + 11008)
    assert predicted.decode_flops() - core.decode_flops() == 2 * own
    assert predicted.decode_bytes() - core.decode_bytes() == 2 * own
    assert predicted.ffn_bytes_read - core.ffn_bytes_read == 2 * own
    assert predicted.ffn_bytes == core.ffn_bytes
    assert predicted.resident_bytes() - core.resident_bytes() == 2 * own
    assert predicted.prefill_resident_bytes - core.prefill_resident_bytes == 2 * own


def test_who_chooses_anew_for_each_token_needs_every_neuron_and_reads_a_share():
    dense, oracle = llava_7b(), llava_7b("oracle-neurons:beta=0.4")
    assert oracle.ffn_bytes == dense.ffn_bytes == dense.ffn_bytes_read
    assert oracle.ffn_bytes_read == 2 * 32 * 3 * 4096 * 4403
    assert oracle.resident_bytes() == dense.resident_bytes()


def test_wina_reads_a_share_of_every_matrix():
    dense, wina = llava_7b(), llava_7b("wina:keep=0.25")
    spared = 32 * (LAYER - (4 * 4096 * 1024 + 2 * 1024 * 11008 + 2752 * 4096))
    assert dense.decode_bytes() - wina.decode_bytes() == 2 * spared
    assert dense.decode_flops() - wina.decode_flops() == 2 * spared
    assert wina.resident_bytes() == dense.resident_bytes()
    assert replace(wina, batch_size=2, ffn_share=1.0).decode_weight_bytes == dense.decode_weight_bytes
    attention = llava_7b("wina:keep=0.25:matrices=ffn").decode_weight_bytes - wina.decode_weight_bytes
    assert attention == 2 * 32 * 4 * 4096 * 3072


def test_two_levels_read_the_gates_of_candidates_and_the_rest_of_the_best():
    work = llava_7b("two-level:candidates=0.6:beta=0.2")
    assert work.ffn_bytes_read == 2 * 32 * 4096 * (6604 + 2 * 2201)
    assert work.ffn_bytes == 2 * 32 * 3 * 4096 * 6604
    assert llava_7b().decode_flops() - work.decode_flops() == 2 * 32 * 4096 * (3 * 11008 - 6604 - 2 * 2201)


def test_cross_attention_layers_read_their_share():
    size = ModelSize.of(shipped_config("llama-3.2-11b-vision"))
    dense, wina = (workload_of(size, spec, 0, 34, dtype="bfloat16") for spec in ("dense", "wina:keep=0.5"))
    cross, shape = size.cross_layers, size.shape
    ffn, turned = shape.neuron_weights * shape.ffn, 2 * shape.hidden * shape.attention
    own = size.text_layers * (shape.attention_weights + ffn) + cross * (turned + ffn)
    assert dense.decode_flops() - wina.decode_flops() == own


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 2.0}, r"batch_size is 2.0; accepted: a whole number, at least 1"),
        ({"ffn_share": 0.3}, r"ffn_share is 0.3; accepted: 0.4, the share of one sequence, to 1"),
        ({"ffn_share": 1.5}, r"ffn_share is 1.5; accepted"),
        ({"image_tokens": 20}, r"image_tokens is 20; accepted: a multiple of 16"),
    ],
)
def test_what_cannot_be_is_refused(model, changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_workload(model, "corematching", **changes)


def test_a_schedule_of_another_model_is_refused(model):
    other = Schedule.of(parse("dense"), LAYERS - 1, SHAPE, PER_IMAGE, TEXT)
    with pytest.raises(ConfigError, match="the schedule has 5 layers; accepted: 6"):
        replace(tiny_workload(model), schedule=other)


def test_unknown_dtype_is_refused(model):
    with pytest.raises(UnknownNameError, match="did you mean 'float16'"):
        tiny_workload(model, dtype="float1")


def test_another_vision_tower_is_refused():
    config = shipped_config("llava-1.5-7b")
    config.vision_config.model_type = "pixtral"
    with pytest.raises(UnsupportedError, match="the vision tower is 'pixtral'"):
        ModelSize.of(config)


def test_an_ffn_keeps_at_least_one_neuron(model):
    assert tiny_workload(model, "core-neurons:beta=0.001").neurons == 1
    assert tiny_workload(model).neurons == NEURONS
