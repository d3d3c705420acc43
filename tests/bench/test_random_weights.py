"""Models with random weights: finite and lively at any depth and dtype, made without the library's initialisation."""

from copy import deepcopy

import pytest
import torch
import transformers.initialization as initialization
from tiny import IMAGE_ID, LAYERS, PER_IMAGE, tiny_llava
from transformers import AutoModelForImageTextToText, PreTrainedModel

from coremat.bench.random_weights import BLOCK, _lay, random_model, random_prompt
from coremat.cost.model_size import ModelSize
from coremat.errors import ConfigError, UnknownNameError
from coremat.models.architecture import shipped_config, with_layers

CONFIG = tiny_llava().config
DEEP = tiny_llava(num_hidden_layers=40, max_position_embeddings=1024).config


def weights(model) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


# --- shipped configs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "billions"), [("llava-1.5-7b", 7.06), ("llava-1.5-13b", 13.35)])
def test_shipped_configs_have_the_published_number_of_parameters(name, billions):
    config = shipped_config(name)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert round(sum(weight.numel() for weight in model.parameters()) / 1e9, 2) == billions


@pytest.mark.parametrize("name", ["llava-1.5-7b", "llava-1.5-13b"])
def test_shipped_configs_have_the_published_ids(name):
    config = shipped_config(name)
    assert (config.image_token_index, config.pad_token_id, config.text_config.vocab_size) == (32000, 32001, 32064)
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    assert (config.text_config.rms_norm_eps, config.text_config.max_position_embeddings) == (1e-5, 4096)
    assert config.text_config.rope_parameters["rope_theta"] == 10_000
    assert config.vision_config.hidden_act == "quick_gelu"


def test_a_shipped_config_is_new_at_each_call():
    shipped_config("llava-1.5-7b").text_config.num_hidden_layers = 1
    assert shipped_config("llava-1.5-7b").text_config.num_hidden_layers == 32


def test_unknown_shipped_config():
    with pytest.raises(UnknownNameError, match=r"did you mean 'llava-1\.5-7b'"):
        shipped_config("llava-1.5")


# --- models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_activations_are_finite_and_tokens_differ_after_forty_layers(dtype):
    model = random_model(DEEP, dtype=dtype)
    seen: list[torch.Tensor] = []
    model.model.language_model.layers[-1].mlp.down_proj.register_forward_pre_hook(
        lambda _, args: seen.append(args[0][0])
    )
    with torch.no_grad():
        logits = model(**random_prompt(DEEP, text_tokens=12, dtype=dtype)).logits.float()
    assert logits.isfinite().all()
    assert 0.3 < logits.std() < 3
    active = (seen[0] > 0).float()
    assert 0.3 < active.mean() < 0.7
    agree = (active @ active.T + (1 - active) @ (1 - active).T) / active.shape[1]
    others = agree[~torch.eye(len(agree), dtype=torch.bool)]
    assert others.max() < 0.95, "no two tokens activate the same neurons"


def test_it_generates_as_many_tokens_as_asked():
    model = random_model(CONFIG, dtype=torch.float32)
    prompt = random_prompt(CONFIG, text_tokens=3, batch_size=2, dtype=torch.float32)
    out = model.generate(**prompt, max_new_tokens=30, do_sample=False)
    assert out.shape == (2, PER_IMAGE + 3 + 30)
    assert model.generation_config.eos_token_id is None
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


def test_matrices_have_unit_gain():
    for name, weight in weights(random_model(CONFIG, dtype=torch.float32)).items():
        if weight.dim() == 1:
            assert (weight == (0 if name.endswith("bias") else 1)).all(), name
        else:
            spread = 1 if "embed_tokens" in name or "position" in name else weight[0].numel() ** -0.5
            assert weight.std() == pytest.approx(spread, rel=0.1), name
            assert abs(weight.mean()) < 0.1 * spread, name


def test_layers_and_seeds_have_weights_of_their_own():
    one, same, other = (weights(random_model(CONFIG, seed=seed)) for seed in (0, 0, 1))
    name = "model.language_model.layers.{}.mlp.gate_proj.weight"
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one[name.format(0)], other[name.format(0)])
    assert not torch.equal(one[name.format(0)], one[name.format(1)])


def test_buffers_are_those_of_the_library():
    mine = dict(random_model(CONFIG, dtype=torch.bfloat16).named_buffers())
    whole = AutoModelForImageTextToText.from_config(deepcopy(CONFIG), dtype=torch.bfloat16)
    assert {name for name, _ in whole.named_buffers()} == set(mine)
    for name, buffer in whole.named_buffers():
        assert torch.equal(buffer, mine[name]), name
    assert any("inv_freq" in name for name in mine)


def test_the_librarys_own_initialisation_is_not_run(monkeypatch):
    expected = weights(random_model(CONFIG))

    def refuse(model):
        raise AssertionError("initialised twice")

    monkeypatch.setattr(PreTrainedModel, "initialize_weights", refuse)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(random_model(CONFIG)).items())


def test_without_a_way_around_initialisation_the_weights_are_the_same(monkeypatch):
    expected = weights(random_model(CONFIG))
    monkeypatch.delattr(initialization, "no_init_weights")
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(random_model(CONFIG)).items())


def test_a_block_is_laid_over_all_of_a_weight():
    block, weight = torch.arange(5.0), torch.full((13,), -1.0)
    _lay(block, weight)
    assert weight.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2]
    short = torch.full((3,), -1.0)
    _lay(block, short)
    assert short.tolist() == [0, 1, 2]


def test_no_two_rows_of_a_large_matrix_are_equal():
    """Rows begin at multiples of their length within the block: its length must share no factor with theirs."""
    assert all(BLOCK % factor for factor in range(2, 1025))
    config = with_layers(shipped_config("llava-1.5-7b"), 1)
    starts = [row * config.text_config.hidden_size % BLOCK for row in range(config.text_config.vocab_size)]
    assert len(set(starts)) == len(starts)


def test_fewer_layers_leave_the_rest_and_the_config_as_they_were():
    model = random_model(CONFIG, layers=2)
    assert len(model.model.language_model.layers) == 2
    assert ModelSize.of(model.config).tower == ModelSize.of(CONFIG).tower
    assert CONFIG.text_config.num_hidden_layers == LAYERS
    assert CONFIG.dtype != torch.bfloat16
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("layers", [0, -1, LAYERS + 1])
def test_a_number_of_layers_that_is_not_there_is_refused(layers):
    with pytest.raises(ConfigError, match=f"layers is {layers}; accepted: 1 to {LAYERS}"):
        random_model(CONFIG, layers=layers)


# --- prompts ------------------------------------------------------------------------------------------------------


def test_a_prompt_is_bos_one_image_and_text():
    prompt = random_prompt(CONFIG, text_tokens=500, batch_size=3, seed=4, dtype=torch.float16)
    ids = prompt["input_ids"]
    assert ids.shape == prompt["attention_mask"].shape == (3, PER_IMAGE + 500)
    assert prompt["attention_mask"].all()
    assert (ids[:, 0] == CONFIG.text_config.bos_token_id).all()
    assert (ids[:, 1 : PER_IMAGE + 1] == IMAGE_ID).all()
    text = ids[:, PER_IMAGE + 1 :]
    special = (IMAGE_ID, CONFIG.text_config.pad_token_id, 1, 2)
    assert not torch.isin(text, torch.tensor(special)).any()
    assert set(text.flatten().tolist()) == set(range(CONFIG.text_config.vocab_size)) - set(special)
    assert prompt["pixel_values"].shape == (3, 3, 56, 56)
    assert prompt["pixel_values"].dtype == torch.float16


def test_prompts_depend_on_the_seed_alone():
    one, same, other = (random_prompt(CONFIG, 20, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["input_ids"], other["input_ids"])
    assert not torch.equal(one["pixel_values"], other["pixel_values"])


def test_the_shortest_text_is_the_bos():
    assert random_prompt(CONFIG, 1)["input_ids"].shape == (1, PER_IMAGE + 1)


@pytest.mark.parametrize("wrong", [{"text_tokens": 0}, {"text_tokens": 5, "batch_size": 0}])
def test_an_empty_prompt_is_refused(wrong):
    with pytest.raises(ConfigError, match="is 0; accepted: a whole number, at least 1"):
        random_prompt(CONFIG, **wrong)
