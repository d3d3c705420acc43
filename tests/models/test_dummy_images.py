"""What the dummy image of a bench is to each family: counts by formula against PyTorch's own, and a bench of each."""

import functools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from coremat.bench import measure
from coremat.bench.options import BenchOptions
from coremat.bench.random_weights import random_model, random_prompt
from coremat.bench.run import bench
from coremat.cost.model_size import ModelSize
from coremat.cost.schedule import Schedule
from coremat.cost.workload import Workload
from coremat.errors import ConfigError
from coremat.hardware.roofline import Roofline
from coremat.methods.dense import Dense
from coremat.models.architecture import with_layers
from coremat.models.dummy_inputs import dummy_image
from coremat.models.families import adapter_for
from coremat.results.tables.bench_notes import setting_notes
from coremat.testing.families import FAMILIES

TEXT, BATCH = 7, 2


@pytest.fixture(autouse=True)
def small_grid(monkeypatch):
    """As many tokens as tiny models need."""
    monkeypatch.setattr("coremat.models.dummy_inputs.GRID", 4)


@functools.cache
def model_of(name):
    config = FAMILIES[name].model().config
    if FAMILIES[name].images and config.vision_config.model_type == "siglip_vision_model":
        config.vision_config.vision_use_head = False  # as released; the head is not run for image tokens
    model = random_model(config, dtype=torch.float32)
    model.set_attn_implementation("eager")
    return model


def workload(model):
    size = ModelSize.of(model.config)
    schedule = Schedule.of(Dense(), size.layers, size.shape, size.image_tokens, TEXT)
    return Workload(size, schedule, BATCH, "float32")


def mask_product(model) -> int:
    """Llama 3.2's tower makes its mask by a matrix product, which no formula here counts."""
    image = dummy_image(model.config)
    return 2 * BATCH * (image.run.tiles * image.run.tokens) ** 2 if image and image.cross_keys else 0


def counted(model, **inputs):
    """Operations before the decoder and in its layers with the head, and what the model gave. The decoder's rotary
    embedding, in some versions a matrix product, is in neither."""
    decoder, seen = model.get_decoder(), []
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        places = (decoder, decoder.layers[0])
        hooks = [place.register_forward_pre_hook(lambda *_: seen.append(counter.get_total_flops())) for place in places]
        out = model(**inputs, logits_to_keep=1, use_cache=True)
    for hook in hooks:
        hook.remove()
    return seen[0], counter.get_total_flops() - seen[1], out


@pytest.mark.parametrize("name", FAMILIES)
def test_operations_parameters_and_cache_are_those_of_the_model(name):
    model = model_of(name)
    work = workload(model)
    vision, decoder, out = counted(model, **random_prompt(model.config, TEXT, BATCH, dtype=torch.float32))
    assert out.logits.isfinite().all()
    assert work.vision_flops == vision - mask_product(model)
    assert work.prefill_flops == decoder
    assert work.kv_bytes() == sum(t.nbytes for layer in out.past_key_values.layers for t in (layer.keys, layer.values))
    assert work.size.parameters == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_operations_of_a_decode_step_are_those_of_the_model(name):
    model = model_of(name)
    prompt, work = random_prompt(model.config, TEXT, BATCH, dtype=torch.float32), workload(model)
    cache = counted(model, **prompt)[2].past_key_values
    step = {
        "input_ids": torch.full((BATCH, 1), 30),
        "position_ids": torch.full((BATCH, 1), work.schedule.prompt_tokens),
    }
    if "cross_attention_mask" in prompt:
        mask = prompt["cross_attention_mask"]
        step["cross_attention_mask"] = torch.cat((mask, mask[:, -1:]), dim=1)
    assert work.decode_flops(1) == counted(model, **step, past_key_values=cache)[1]


@pytest.mark.parametrize("name", ["gemma3", "mllama", "qwen3_vl"])
def test_fewer_layers_are_those_in_front(name):
    config = with_layers(FAMILIES[name].model().config, 4)
    model = random_model(config, dtype=torch.float32)
    assert len(model.get_decoder().layers) == 4
    out = model(**random_prompt(config, TEXT, dtype=torch.float32))
    assert out.logits.isfinite().all()


def test_a_placeholder_that_is_no_image_token_counts_as_text():
    config = FAMILIES["mllama"].model().config
    assert random_prompt(config, 2)["input_ids"].shape == (1, 2)
    with pytest.raises(ConfigError, match="text_tokens is 1; accepted: a whole number, at least 2"):
        random_prompt(config, 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_its_bench(name, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "measure_roofline", lambda *_: Roofline(bandwidth=1e10, rate=1e11))
    FAMILIES[name].model().config.save_pretrained(tmp_path)
    methods = ("corematching:prune_layer=1", "core-neurons", "prumerge")
    small = {"layers": 3, "text_tokens": TEXT, "new_tokens": 2, "repeats": 1}
    outcome = bench(BenchOptions(str(tmp_path), methods, device="cpu", dtype="float32", **small))
    assert outcome.stopped is None
    record = outcome.record
    lost = set() if adapter_for(FAMILIES[name].model()).vision_layers is not None else {"prumerge"}
    lost |= set() if FAMILIES[name].tokens else {methods[0]}
    assert set(record.config["skipped"]) == lost
    assert {row.method for row in record.rows} == {"dense", *methods} - lost
    for row in record.rows:
        assert row.flops_counted in (None, row.flops)
    for entry in record.memory:
        assert entry.kv_cache_mib == 2 * entry.kv_cache_mib_paper
    notes = list(setting_notes(record))
    assert all(f"{method} was skipped: {reason}" in notes for method, reason in record.config["skipped"].items())
