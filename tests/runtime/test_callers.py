"""What people do with a model inside a block: wrappers, threads, training modes, outputs by position."""

import threading

import pytest
import torch
from tiny import IMAGE, answer, batch, make_inputs, tiny_llava

import coremat
from coremat.errors import ConfigError, UnsupportedError
from coremat.methods.fastv import FastV

SPEC = "corematching:tokens=5"


def test_a_method_or_its_name_is_taken(model):
    answers = []
    for method in (FastV(tokens=5), "fastv:tokens=5"):
        with coremat.apply(model, method):
            answers.append(answer(model, batch("one")).logits)
    assert torch.equal(*answers)


@pytest.mark.parametrize("wrong", [{"tokens": 5}, 7, None, FastV])
def test_anything_else_is_one_sentence(model, wrong):
    with pytest.raises(ConfigError, match=r"accepted: a method such as FastV\(tokens=64\), or its name"):
        coremat.apply(model, wrong).__enter__()


# --- outputs by position -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [SPEC, "divprune:tokens=5", "fastv:tokens=5"])
def test_logits_are_where_their_tokens_are(model, spec):
    """Those of `generate`'s last token and those of the dense positions; NaN where a token was dropped."""
    inputs = batch("left-padded")
    with coremat.apply(model, spec) as session, torch.no_grad():
        whole = model(**inputs).logits
        kept = session.prompt.present.kept.in_prompt(whole.shape[1])
        last = model(**inputs, logits_to_keep=1).logits
        some = model(**inputs, logits_to_keep=torch.tensor([3, 9, 20])).logits
        nine = model(**inputs, logits_to_keep=9).logits
    assert whole.shape[:2] == inputs["input_ids"].shape
    dropped = ~kept & inputs["attention_mask"].bool()
    assert dropped.any()
    assert torch.equal(whole.isnan().all(-1), dropped)
    assert torch.allclose(whole[:, -1:], last, atol=1e-5)
    assert torch.allclose(whole[:, [3, 9, 20]], some, atol=1e-5, equal_nan=True)
    assert torch.allclose(whole[:, -9:], nine, atol=1e-5, equal_nan=True)


def test_the_loss_is_over_what_stays(model):
    inputs = batch("one")
    labels = inputs["input_ids"].clone()
    with coremat.apply(model, SPEC), torch.no_grad():
        out = model(**inputs, labels=labels)
    pairs = [
        (out.logits[0, n], labels[0, n + 1]) for n in range(labels.shape[1] - 1) if out.logits[0, n].isfinite().all()
    ]
    expected = torch.stack([torch.nn.functional.cross_entropy(logits, label) for logits, label in pairs]).mean()
    assert torch.allclose(out.loss, expected, atol=1e-5)
    assert torch.equal(labels, inputs["input_ids"])  # the caller's own tensor


def test_training_works_through_a_block():
    model = tiny_llava().train()
    inputs = batch("one")
    with coremat.apply(model, "fastv:tokens=5"):
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
    grads = [p.grad for p in model.get_decoder().parameters() if p.grad is not None]
    assert grads
    assert all(g.isfinite().all() for g in grads)


# --- how it is run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [SPEC, "fastv:tokens=5", "core-neurons"])
def test_autocast_over_float32_weights(model, spec):
    """The dense model's dtypes: logits as without a block, and an answer near that of float32."""
    inputs = batch("left-padded")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dense = answer(model, inputs, new=6).logits.dtype
    with coremat.apply(model, spec):
        exact = answer(model, inputs, new=1).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = answer(model, inputs, new=6).logits
    assert cast.dtype == dense
    assert (cast[:, 0].float() - exact[:, 0]).abs().max() < 0.25


def test_inference_mode_leaves_a_model_that_can_be_trained():
    model, inputs = tiny_llava(), batch("one")
    places = {name: w.data_ptr() for name, w in model.named_parameters()}
    with torch.inference_mode(), coremat.apply(model, SPEC):
        answer(model, inputs)
    assert not [name for name, w in model.named_parameters() if w.is_inference()]
    assert {name: w.data_ptr() for name, w in model.named_parameters()} == places
    model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()


def test_an_older_state_dict_still_points_to_the_weights():
    model = tiny_llava()
    older = model.state_dict()
    with coremat.apply(model, SPEC):
        answer(model, batch("one"))
    down = model.get_decoder().layers[0].mlp.down_proj.weight
    with torch.no_grad():
        down[0, 0] = 7
    name = next(name for name, w in model.named_parameters() if w is down)
    assert older[name][0, 0] == 7


def test_memory_shared_with_other_processes_is_not_rearranged():
    model = tiny_llava().share_memory()
    other = {name: w.detach().clone() for name, w in model.named_parameters()}
    shared = model.state_dict()
    with coremat.apply(model, SPEC):
        answer(model, batch("one"))
        assert all(torch.equal(shared[name], value) for name, value in other.items() if name in shared)
    assert all(w.is_shared() for w in model.parameters())
    assert all(torch.equal(shared[name], value) for name, value in other.items() if name in shared)


def test_a_peft_wrapper_answers_as_the_model_that_it_wraps():
    peft = pytest.importorskip("peft")
    inputs, plain = batch("one"), tiny_llava()
    with coremat.apply(plain, "fastv:tokens=5"):
        expected = answer(plain, inputs).tokens
    wrapped = peft.get_peft_model(tiny_llava(), peft.LoraConfig(r=4, target_modules=["q_proj"])).eval()
    with coremat.apply(wrapped, "fastv:tokens=5") as session:
        got = wrapped.generate(**inputs, max_new_tokens=5, do_sample=False)
        assert session.stats[0].image_tokens_kept == 5
    assert torch.equal(got[:, -5:], expected)


def test_token_methods_touch_no_ffn_weight():
    """So they work where an FFN is quantised or has adapters, and neuron methods say what is in the way."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_llava(), peft.LoraConfig(r=4, target_modules="all-linear")).eval()
    for spec in ("dense", "fastv", "core-tokens:tokens=5", "divprune:tokens=5"):
        with coremat.apply(model, spec):
            model.generate(**batch("one"), max_new_tokens=2)
    with pytest.raises(UnsupportedError, match=r"gate_proj in layer 0 .* neither quantised nor wrapped"):
        coremat.apply(model, "core-neurons").__enter__()


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_is_refused_and_left_alone(in_place):
    model = tiny_llava()
    compiled = model if in_place else torch.compile(model, backend="eager")
    if in_place:
        model.compile(backend="eager")
    before = set(model.__dict__)
    with pytest.raises(UnsupportedError, match=r"compiled by torch.compile.*; accepted: the model before"):
        coremat.apply(compiled, SPEC).__enter__()
    assert set(model.__dict__) == before


def test_a_part_of_a_model_is_refused(model):
    with pytest.raises(UnsupportedError, match="LlavaModel is a part of a model; accepted: the model with its output"):
        coremat.apply(model.model, SPEC).__enter__()


def test_two_wrappers_of_one_decoder_are_one_model(model):
    other = tiny_llava()
    other.model = model.model
    with coremat.apply(model, SPEC), pytest.raises(ConfigError, match=r"already inside coremat\.apply"):
        coremat.apply(other, SPEC).__enter__()


def test_the_inner_model_is_pruned_too(model):
    """A call of the model without its head reads a prompt of its own, not the neurons of the one before."""
    first, second = batch("one"), make_inputs([1, 50, IMAGE, 60, 61, 62, 63])
    with coremat.apply(model, SPEC) as session, torch.no_grad():
        answer(model, first)
        out = model.model(**second)
        assert session.stats[0].image_tokens_kept == 5
        whole = model(**second).logits
    kept = ~whole.isnan().any(-1)
    logits = model.get_output_embeddings()(out.last_hidden_state)
    assert torch.equal(logits[kept], whole[kept])


def test_threads_take_turns(model):
    prompts = [make_inputs([1, 30 + k, IMAGE, *range(31, 31 + k % 5)]) for k in range(8)]
    wrong: list[int] = []
    with coremat.apply(model, SPEC):
        expected = [model.generate(**p, max_new_tokens=6, do_sample=False) for p in prompts]

        def ask(own: int) -> None:
            for k in (own, (own + 3) % 8, (own + 5) % 8):
                if not torch.equal(model.generate(**prompts[k], max_new_tokens=6, do_sample=False), expected[k]):
                    wrong.append(k)

        threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
