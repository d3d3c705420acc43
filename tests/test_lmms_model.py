"""The lmms subclass: what lmms-eval does to a model, and what it may expect of one."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from fake_answers import FAKE, FakeAnswer, install
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from PIL import Image

import coremat.lmms_model
from coremat.config import SparsityConfig
from coremat.errors import ConfigError, UnknownNameError, UnsupportedError
from coremat.lmms_model import CoreMatchingLmms, batches, digest, generation_settings, sample_seed

GREEDY = {"max_new_tokens": 8, "do_sample": False}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeAnswer:
    return install(monkeypatch.setattr, FakeAnswer())


def picture(shade: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (shade, 0, 0))


def make_requests(texts: list[str], settings: list[dict[str, Any]] | None = None) -> list[Instance]:
    """As lmms-eval makes them for a chat model; document i shows a picture of shade i."""

    def messages(doc: int) -> list[dict[str, Any]]:
        content = [{"type": "image", "url": picture(doc)}, {"type": "text", "text": texts[doc]}]
        return [{"role": "user", "content": content}]

    return [
        Instance(
            request_type="generate_until",
            arguments=(text, messages, (settings or [GREEDY] * len(texts))[doc], doc, "task", "test"),
            idx=0,
            metadata={"task": "task", "doc_id": doc, "repeats": 1},
        )
        for doc, text in enumerate(texts)
    ]


def make_model(batch_size: int = 3, **options: Any) -> CoreMatchingLmms:
    model = CoreMatchingLmms(FAKE, batch_size=batch_size, **options)
    model.task_dict = {"task": {"test": range(1000)}}
    return model


QUESTIONS = [f"{'long ' * (n % 4)}question {n}" for n in range(11)]


def test_the_order_of_the_requests_is_kept(fake: FakeAnswer) -> None:
    one_by_one = [make_model(1).generate_until([request])[0].text for request in make_requests(QUESTIONS)]
    together = make_model(3).generate_until(make_requests(QUESTIONS))
    assert [result.text for result in together] == one_by_one
    assert len(set(one_by_one)) > 1
    assert sorted(question for batch in fake.asked[11:] for question in batch) == sorted(QUESTIONS)
    assert max(map(len, fake.asked[11:])) == 3


def test_prompts_of_like_length_are_answered_together() -> None:
    requests = make_requests(QUESTIONS)
    lengths = [len(requests[index].args[0]) for batch in batches(requests, 3) for index in batch]
    assert lengths == sorted(lengths)


def test_a_batch_has_one_kind_of_settings(fake: FakeAnswer) -> None:
    settings = [{"max_new_tokens": 4 + n % 2, "do_sample": False} for n in range(11)]
    make_model().generate_until(make_requests(QUESTIONS, settings))
    for batch, used in zip(fake.asked, fake.settings, strict=True):
        assert {settings[QUESTIONS.index(question)]["max_new_tokens"] for question in batch} == {used["max_new_tokens"]}


def test_the_settings_of_a_request_are_not_touched(fake: FakeAnswer) -> None:
    settings = [{"until": ["\n"], "temperature": 0.0, "image_aspect_ratio": "pad"} for _ in QUESTIONS]
    before = copy.deepcopy(settings)
    make_model().generate_until(make_requests(QUESTIONS, settings))
    assert settings == before


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ({}, {"max_new_tokens": 128, "do_sample": False, "until": []}),
        ({"max_new_tokens": None}, {"max_new_tokens": 128, "do_sample": False, "until": []}),
        ({"until": "\n"}, {"max_new_tokens": 128, "do_sample": False, "until": ["\n"]}),
        ({"until": ["a", "b"]}, {"max_new_tokens": 128, "do_sample": False, "until": ["a", "b"]}),
        (
            {"temperature": 0, "top_p": 1.0, "num_beams": 2},
            {"max_new_tokens": 128, "do_sample": False, "num_beams": 2, "until": []},
        ),
        (
            {"temperature": 0.7, "max_new_tokens": 5},
            {"max_new_tokens": 5, "do_sample": True, "temperature": 0.7, "until": []},
        ),
        (
            {"temperature": 0, "do_sample": True, "image_aspect_ratio": "pad"},
            {"max_new_tokens": 128, "do_sample": False, "until": []},
        ),
    ],
)
def test_settings(given: dict[str, Any], used: dict[str, Any]) -> None:
    assert generation_settings(given) == used


def test_clean_keeps_the_model(fake: FakeAnswer) -> None:
    model = make_model()
    model.part = torch.nn.Identity()  # lmms-eval's own `clean` deletes attributes that are modules
    model.clean()
    assert hasattr(model, "part")
    assert len(model.generate_until(make_requests(QUESTIONS))) == 11


def test_repr_is_stable_and_tells_all_that_answers_depend_on() -> None:
    assert repr(make_model()) == repr(make_model(batch_size=5))
    others = [
        make_model(beta=0.3),
        make_model(method="dense"),
        make_model(seed=1),
        CoreMatchingLmms(replace(FAKE, fingerprint="other")),
        CoreMatchingLmms(replace(FAKE, dtype="bfloat16")),
    ]
    assert len({repr(one) for one in [make_model(), *others]}) == 6


def test_an_exception_in_the_model_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch.setattr, FakeAnswer(fail_after=1, error=RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        make_model().generate_until(make_requests(QUESTIONS))


def test_each_sample_has_its_own_seed_in_any_batch(fake: FakeAnswer) -> None:
    make_model(2, seed=7).generate_until(make_requests(QUESTIONS))
    for batch, seeds in zip(fake.asked, fake.seeds, strict=True):
        assert seeds == [sample_seed(7, "task", QUESTIONS.index(question)) for question in batch]
    assert sample_seed(7, "task", 0) != sample_seed(8, "task", 0) != sample_seed(8, "task", 1)
    assert 0 <= sample_seed(7, "task", 0) < 2**63


class Kept:
    """A store that remembers keys, and knows the answers given to it."""

    def __init__(self, known: dict[str, str] | None = None) -> None:
        self.known, self.keys, self.added = known or {}, [], []

    def get(self, question: coremat.lmms_model.Question) -> str | None:
        self.keys.append(question.key)
        return self.known.get(question.key)

    def add(self, made: Any) -> None:
        self.added.append([question.key for question, _ in made])


def test_answers_made_before_are_served_and_a_torn_batch_is_computed_whole(fake: FakeAnswer) -> None:
    first = Kept()
    make_model(store=first).generate_until(make_requests(QUESTIONS))
    assert [key for batch in first.added for key in batch] == first.keys
    known = dict.fromkeys(first.keys[:4], "from before")
    fake.asked.clear()
    second = Kept(known)
    texts = [result.text for result in make_model(store=second).generate_until(make_requests(QUESTIONS))]
    assert texts.count("from before") == 4
    assert len(fake.asked[0]) == 3, "the batch of which one answer was known"
    assert [key for batch in second.added for key in batch] == first.keys[4:]


def keys(texts: list[str], settings: dict[str, Any] | None = None, **options: Any) -> list[str]:
    store = Kept()
    make_model(store=store, **options).generate_until(make_requests(texts, [settings or GREEDY] * len(texts)))
    return store.keys


def test_the_key_of_an_answer_changes_with_all_that_it_depends_on(
    fake: FakeAnswer, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = keys(["a question"])
    assert keys(["a question"], batch_size=1) == base
    assert keys(["a question"], {"do_sample": False, "max_new_tokens": 8}) == base
    others = [
        keys(["another one"]),
        keys(["a question"], GREEDY | {"max_new_tokens": 9}),
        keys(["a question"], beta=0.3),
        keys(["x", "a question"])[1:],  # another document and picture
    ]
    monkeypatch.setattr("test_lmms_model.picture", lambda shade: Image.new("RGB", (8, 8), (shade, 1, 0)))
    others.append(keys(["a question"]))
    assert len({key for one in [base, *others] for key in one}) == 6


def test_a_hash_of_an_image_tells_pixels_sizes_and_modes_apart() -> None:
    images = [picture(0), picture(1), Image.new("RGB", (4, 16)), Image.new("L", (8, 24)), Image.new("RGB", (16, 4))]
    assert len({digest(image) for image in images}) == 5
    assert digest(picture(3)) == digest(picture(3))


def test_what_it_is_not() -> None:
    with pytest.raises(UnsupportedError, match="likelihoods"):
        make_model().loglikelihood([])
    with pytest.raises(UnsupportedError, match="several rounds"):
        make_model().generate_until_multi_round([])


def test_lmms_eval_finds_it_by_name() -> None:
    assert get_model("coremat") is CoreMatchingLmms


def test_lmms_eval_makes_it_from_a_string_of_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(coremat.lmms_model, "load", lambda *words: asked.append(words) or FAKE)
    text = "pretrained=some/model,method=corematching,beta=0.2,tokens=32,dtype=float32"
    model = CoreMatchingLmms.create_from_arg_string(text, {"batch_size": "4", "device": "cpu", "max_batch_size": None})
    assert asked == [("some/model", "cpu", "float32")]
    assert (model.batch_size, model.config) == (4, SparsityConfig(beta=0.2, tokens=32, prune_layer=FAKE.prune_layer))


def test_bad_arguments() -> None:
    with pytest.raises(ConfigError, match="batch_size is 'auto'"):
        make_model(batch_size="auto")
    with pytest.raises(UnknownNameError, match="did you mean 'beta'"):
        make_model(betta=0.2)
    with pytest.raises(UnknownNameError, match="did you mean 'core-tokens'"):
        make_model(method="core-tokenz")
