"""Models of text alone: windows that neurons do not mind, chat templates, padding, and what they are not asked."""

import pytest
import torch
from equivalence import compare
from text_model import TEMPLATE, save_text_model
from tiny import answer

import coremat
from coremat.decoding.graph_decoder import GraphDecoder
from coremat.errors import ModelError, UnsupportedError
from coremat.generate import answering, prepare
from coremat.methods.registry import parse
from coremat.models.architecture import shipped_config
from coremat.models.families import adapter_for, check_takes_images
from coremat.models.load import load
from coremat.preprocessing.prompt_format import Preprocessing
from coremat.testing.families import FAMILIES
from coremat.testing.families.family import BOS
from coremat.testing.families.text import WINDOW, inputs, text_model

NAMES = [name for name, family in FAMILIES.items() if not family.images]
WINDOWED = {"qwen2": 2, "qwen3": 2, "mistral": 0, "gemma3_text": 0}  # the first layer with a window
METHODS = ("core-neurons", "random-neurons", "griffin", "energy-neurons", "oracle-neurons", "powerinfer")
NEW = 6


def windowed(name):
    """Qwen2 and Qwen3 have a window where it is switched on, from a layer on."""
    own = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": WINDOWED[name]}
    return text_model(name, **(own if name.startswith("qwen") else {}))


def prompt_of(length):
    return inputs([[BOS, *(30 + number % 60 for number in range(length - 1))]], torch.float32)


# --- windows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WINDOWED)
def test_neurons_do_not_mind_a_window(errors, name):
    model = windowed(name)
    assert adapter_for(model).window == WINDOW
    compare(model, prompt_of(WINDOW + 9), "core-neurons", errors, f"{name}, beyond the window", new=NEW)


@pytest.mark.parametrize("name", NAMES)
def test_no_window_where_none_is_switched_on(name):
    own = {"mistral": {"sliding_window": None}, "gemma3_text": {"layer_types": ["full_attention"] * 6}}
    assert adapter_for(text_model(name, **own.get(name, {}))).window is None


@pytest.mark.parametrize("name", WINDOWED)
def test_the_static_step_goes_as_far_as_the_window(name):
    model, exact = windowed(name), prompt_of(WINDOW - NEW)
    with coremat.apply(model, "core-neurons") as session:
        decoder = GraphDecoder(model, session, NEW)
        assert torch.equal(decoder.generate(exact, NEW), answer(model, exact, new=NEW).tokens)
        with pytest.raises(UnsupportedError, match=f"{WINDOW + 1} together; accepted by the static step"):
            decoder.generate(prompt_of(WINDOW - NEW + 1), NEW)


# --- methods --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", METHODS)
def test_neuron_methods_work(name, method):
    with coremat.apply(FAMILIES[name].model(), method) as session:
        assert answer(session.adapter.model, FAMILIES[name].batch("left-padded"), new=3).logits.isfinite().all()
    assert all(row.image_tokens == 0 and row.kept == () for row in session.stats)
    assert all(count < row.neurons for row in session.stats for count in row.neurons_kept)


@pytest.mark.parametrize("method", ["corematching", "fastv", "visionzip", "divprune+core-neurons"])
def test_token_methods_are_refused_in_one_sentence(method):
    said = r"^LlamaForCausalLM has no image tokens; accepted: methods of neurons alone, dense\.$"
    with pytest.raises(UnsupportedError, match=said), coremat.apply(FAMILIES["llama"].model(), method):
        pass


def test_embeddings_may_come_in_place_of_ids():
    model, prompt = FAMILIES["llama"].model(), prompt_of(9)
    with coremat.apply(model, "core-neurons"):
        expected = answer(model, prompt).tokens
        embeddings = model.get_input_embeddings()(prompt["input_ids"])
        found = model.generate(inputs_embeds=embeddings, do_sample=False, max_new_tokens=5)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["llama", "llava"])
def test_a_prompt_past_the_model_around_the_decoder_is_refused(name):
    """It would be read with the neurons of the last one."""
    model, ids = FAMILIES[name].model(), prompt_of(9)["input_ids"]
    decoder = model.get_decoder()
    with coremat.apply(model, "core-neurons"), torch.no_grad():
        model(ids)
        with pytest.raises(UnsupportedError, match="a prompt came to the LlamaModel by itself"):
            decoder(ids)
    assert decoder(ids).last_hidden_state.isfinite().all()


# --- loading and asking ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_text_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loaded(folder):
    return load(str(folder), "cpu", "float32")


def asked(*texts):
    return [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in texts]


def read(loaded, conversations):
    return loaded.tokenizer.batch_decode(prepare(loaded, conversations)["input_ids"])


def test_the_chat_template_is_filled(loaded):
    assert loaded.tokenizer.chat_template == TEMPLATE
    assert loaded.processor is loaded.tokenizer
    assert read(loaded, asked("one two")) == ["<s> user one two assistant"]


def test_a_system_sentence_comes_first(loaded, folder):
    other = load(str(folder), "cpu", "float32", Preprocessing(system="be brief"))
    assert read(other, asked("one")) == ["<s> system be brief user one assistant"]


def test_shorter_rows_are_filled_on_the_left_with_the_end_token(loaded):
    prompt = prepare(loaded, asked("one", "one two three"))
    assert prompt["attention_mask"].tolist() == [[0, 0, 1, 1, 1, 1], [1] * 6]
    assert prompt["input_ids"][0, :2].tolist() == [loaded.tokenizer.eos_token_id] * 2


def test_without_a_template_the_text_is_bare(tmp_path):
    bare = load(str(save_text_model(tmp_path, template=None)), "cpu", "float32")
    assert read(bare, asked("one two")) == ["<s> one two"]
    assert read(bare, [[{"role": "user", "content": "three"}]]) == ["<s> three"]


def test_an_image_is_refused(loaded):
    pictures = [[{"role": "user", "content": [{"type": "image", "image": None}, {"type": "text", "text": "what?"}]}]]
    with pytest.raises(UnsupportedError, match="reads text alone, and a conversation holds image"):
        prepare(loaded, pictures)


def test_answers_are_as_long_as_they_are(loaded):
    """The end token, with which shorter rows are filled up, counts once."""
    generation = {"max_new_tokens": 5, "do_sample": False}
    with answering(loaded, parse("core-neurons")) as answer_batch:
        whole = answer_batch(asked("one", "two three"), generation)
        assert [reply.new_tokens for reply in whole] == [5, 5]
        prompt = prepare(loaded, asked("one", "two three"))
        tokens = loaded.model.generate(**prompt, **generation)[:, prompt["input_ids"].shape[1] :]
        first = next(t for t in tokens[0].tolist() if t not in tokens[1].tolist())
        assert tokens[0].tolist().index(first) < 4, "or else nothing is filled up"
        before = loaded.model.generation_config.eos_token_id
        loaded.model.generation_config.eos_token_id = [first, loaded.tokenizer.eos_token_id]
        try:
            ended = answer_batch(asked("one", "two three"), generation)
        finally:
            loaded.model.generation_config.eos_token_id = before
    assert [reply.new_tokens for reply in ended] == [tokens[0].tolist().index(first) + 1, 5]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    save_text_model(tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match="has no usable tokenizer"):
        load(str(tmp_path))


def test_a_model_with_a_tower_takes_images_and_one_without_does_not():
    check_takes_images("llava-1.5-7b", shipped_config("llava-1.5-7b"), "that")
    with pytest.raises(UnsupportedError, match=r"^llama-3.2-1b \(llama\) reads text alone; accepted: that\.$"):
        check_takes_images("llama-3.2-1b", shipped_config("llama-3.2-1b"), "that")
