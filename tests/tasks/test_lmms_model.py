"""The lmms subclass: what lmms-eval does to a model, and what it may expect of one."""

import copy
import io
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_answers import FAKE, FakeAnswer, install
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from no_memory import NO_MEMORY
from PIL import Image, UnidentifiedImageError

import coremat.tasks.lmms_eval.model
from coremat.errors import ConfigError, UnknownNameError, UnsupportedError
from coremat.methods.corematching.core_neurons import CoreNeurons
from coremat.methods.corematching.corematching import CoreMatching
from coremat.methods.corematching.random_tokens import RandomTokens
from coremat.preprocessing.prompt_format import Preprocessing
from coremat.tasks.lmms_eval.model import (
    CoreMatchingLmms,
    NoStore,
    Question,
    batches,
    digest,
    generation_settings,
    sample_seed,
)

TASK = "task"
MINE = Path(__file__).parents[1] / "fixtures" / "mine.py"
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
            arguments=(text, messages, (settings or [GREEDY] * len(texts))[doc], doc, TASK, "test"),
            idx=0,
            metadata={"task": TASK, "doc_id": doc, "repeats": 1},
        )
        for doc, text in enumerate(texts)
    ]


def make_model(batch_size: int = 3, **options: Any) -> CoreMatchingLmms:
    model = CoreMatchingLmms(FAKE, batch_size=batch_size, **options)
    model.task_dict = {TASK: {"test": range(1000)}}
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
    install(monkeypatch.setattr, FakeAnswer(fail_after=1, error=RuntimeError("a weight is missing")))
    with pytest.raises(RuntimeError, match="a weight is missing"):
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
        self.known, self.keys, self.added, self.smaller = known or {}, [], [], []

    def get(self, question: coremat.tasks.lmms_eval.model.Question) -> str | None:
        self.keys.append(question.key)
        return self.known.get(question.key)

    def add(self, made: Any, smaller: bool) -> None:
        self.added.append([question.key for question, _ in made])
        self.smaller.append(smaller)


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
        keys(["a question"], GREEDY | {"until": ["\n"]}),
        keys(["a question"], beta=0.3),
        keys(["a question"], beta=0.3, method="core-neurons"),
        keys(["a question"], method="dense"),
        keys(["a question"], method="fastv"),
        keys(["a question"], method="fastv", tokens=32),
        keys(["a question"], seed=1),
        keys(["x", "a question"])[1:],  # another document and picture
    ]
    changes: list[tuple[str, Any]] = [
        ("test_lmms_model.FAKE", replace(FAKE, fingerprint="weights-1")),
        ("test_lmms_model.FAKE", replace(FAKE, dtype="bfloat16")),
        ("test_lmms_model.FAKE", replace(FAKE, preprocessing=Preprocessing(system="You are terse."))),
        ("test_lmms_model.FAKE", replace(FAKE, preprocessing=Preprocessing(square=True))),
        ("test_lmms_model.TASK", "other-task"),
        ("test_lmms_model.picture", lambda shade: Image.new("RGB", (8, 8), (shade, 1, 0))),
        ("coremat.tasks.lmms_eval.model.__version__", "9.9.9"),
    ]
    for name, value in changes:
        with monkeypatch.context() as change:
            change.setattr(name, value)
            others.append(keys(["a question"]))
    assert len({key for one in [base, *others] for key in one}) == 1 + len(others)
    assert keys(["a question"]) == base


def test_a_hash_of_an_image_tells_pixels_sizes_and_modes_apart() -> None:
    images = [picture(0), picture(1), Image.new("RGB", (4, 16)), Image.new("L", (8, 24)), Image.new("RGB", (16, 4))]
    assert len({digest(image) for image in images}) == 5
    assert digest(picture(3)) == digest(picture(3))


# --- what does not fit, and what can't be read -----------------------------------------------------------


@pytest.mark.parametrize(("size", "room", "used"), [(8, 3, [8, 4, 2]), (8, 1, [8, 4, 2, 1]), (11, 5, [11, 5])])
def test_batches_that_do_not_fit_are_halved_until_they_do(
    monkeypatch: pytest.MonkeyPatch, size: int, room: int, used: list[int]
) -> None:
    fitting = install(monkeypatch.setattr, FakeAnswer())
    expected = [result.text for result in make_model(size).generate_until(make_requests(QUESTIONS))]
    assert max(map(len, fitting.asked)) == size
    fake, store, said = install(monkeypatch.setattr, FakeAnswer(room=room)), Kept(), []
    results = make_model(size, store=store, log=said.append).generate_until(make_requests(QUESTIONS))
    assert [result.text for result in results] == expected
    assert [key for batch in store.added for key in batch] == store.keys
    assert said == [
        f"memory ran out on {many} questions at once; going on with {fewer}" for many, fewer in pairwise(used)
    ]
    assert max(map(len, fake.asked)) == used[-1] <= room
    assert sum(map(len, fake.asked)) == len(QUESTIONS)
    assert store.smaller == [len(batch) > used[-1] for batch in store.added]


def test_the_size_that_fits_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    class Counting(FakeAnswer):
        def _answer(self, method: Any, conversations: Any, *words: Any) -> Any:
            tried.append(len(conversations))
            return super()._answer(method, conversations, *words)

    install(monkeypatch.setattr, Counting(room=2))
    make_model(4).generate_until(make_requests(QUESTIONS))
    assert tried == [4, 2, 2, 2, 2, 2, 1]


def test_a_question_that_does_not_fit_alone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch.setattr, FakeAnswer(room=0))
    with pytest.raises(UnsupportedError) as caught:
        make_model(2, log=lambda text: None).generate_until(make_requests(["short", "a long question"]))
    assert str(caught.value) == "memory ran out on question 0 of task alone: CUDA out of memory"


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("")])
def test_memory_that_ran_out_without_a_word(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    install(monkeypatch.setattr, FakeAnswer(room=0, no_memory=error))
    with pytest.raises(UnsupportedError, match=f"alone: {type(error).__name__}$"):
        make_model(1).generate_until(make_requests(["a question"]))


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_batches_are_halved_whatever_says_that_memory_ran_out(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fake = FakeAnswer(room=1, no_memory=error)
    install(monkeypatch.setattr, fake)
    said: list[str] = []
    assert len(make_model(2, log=said.append).generate_until(make_requests(["a question", "a long question"]))) == 2
    assert said == ["memory ran out on 2 questions at once; going on with 1"]


class Docs:
    """As a dataset gives them; `broken` of them cannot be decoded."""

    def __init__(self, broken: dict[int, Exception]) -> None:
        self.broken = broken

    def __getitem__(self, number: int) -> int:
        if number in self.broken:
            raise self.broken[number]
        return number


ADDRESS = f"cannot identify image file {io.BytesIO()!r}"


def asked_with(broken: dict[int, Exception], store: Kept, said: list[str]) -> list[str]:
    model = make_model(3, store=store, log=said.append)
    model.task_dict = {TASK: {"test": Docs(broken)}}
    return [result.text for result in model.generate_until(make_requests(QUESTIONS))]


def test_what_cannot_be_read_is_not_asked_and_the_others_are(fake: FakeAnswer) -> None:
    whole = asked_with({}, Kept(), [])
    fake.asked.clear()
    broken = {2: OSError("image file is truncated"), 5: UnidentifiedImageError(ADDRESS), 7: ValueError("\n a\n b ")}
    store, said = Kept(), []
    texts = asked_with(broken, store, said)
    assert texts == [("" if number in broken else text) for number, text in enumerate(whole)]
    reasons = {2: "image file is truncated", 5: "cannot identify image file", 7: "a b"}
    assert sorted(said) == [f"question {n} of task counts as wrong: {why}" for n, why in reasons.items()]
    asked = [question for batch in fake.asked for question in batch]
    assert sorted(asked) == sorted(text for number, text in enumerate(QUESTIONS) if number not in broken)
    assert store.smaller == [False] * 4
    assert sum(map(len, store.added)) == len(QUESTIONS), "what is broken has a line as well"


def test_a_batch_and_a_task_of_broken_ones_alone(fake: FakeAnswer) -> None:
    store = Kept()
    assert asked_with({n: OSError() for n in range(11)}, store, []) == [""] * 11
    assert fake.asked == []
    assert sum(map(len, store.added)) == 11


def test_what_is_broken_has_the_same_key_in_every_process(fake: FakeAnswer) -> None:
    """Pillow names the address of a stream, and another Pillow may use other words."""
    first, again, other, whole = Kept(), Kept(), Kept(), Kept()
    said: list[str] = []
    asked_with({5: UnidentifiedImageError(ADDRESS)}, first, said)
    asked_with({5: UnidentifiedImageError("cannot identify image file <_io.BytesIO object at 0x7f>")}, again, said)
    assert len(set(said)) == 1
    asked_with({5: OSError("no image")}, other, said)
    asked_with({}, whole, said)
    assert first.keys == again.keys == other.keys
    assert len(set(first.keys) - set(whole.keys)) == 1


def test_a_fault_of_a_task_is_not_a_broken_image(fake: FakeAnswer) -> None:
    def fail(doc: int) -> list[dict[str, Any]]:
        raise ValueError("a fault")

    requests = make_requests(["a question"])
    requests[0].arguments = (requests[0].args[0], fail, *requests[0].args[2:])
    with pytest.raises(ValueError, match="a fault"):
        make_model().generate_until(requests)


def test_what_it_is_not() -> None:
    with pytest.raises(UnsupportedError, match="likelihoods"):
        make_model().loglikelihood([])
    with pytest.raises(UnsupportedError, match="several rounds"):
        make_model().generate_until_multi_round([])


def test_lmms_eval_finds_it_by_name() -> None:
    assert get_model("coremat") is CoreMatchingLmms


def test_lmms_eval_makes_it_from_a_string_of_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(coremat.tasks.lmms_eval.model, "load", lambda *words: asked.append(words) or FAKE)
    text = "pretrained=some/model,method=corematching,beta=0.2,tokens=32,dtype=float32"
    model = CoreMatchingLmms.create_from_arg_string(text, {"batch_size": "4", "device": "cpu", "max_batch_size": None})
    assert asked == [("some/model", "cpu", "float32")]
    assert (model.batch_size, model.method) == (4, CoreMatching(beta=0.2, tokens=32, prune_layer=FAKE.prune_layer))


def test_fields_are_options_of_what_is_typed() -> None:
    joined = make_model(method="fastv:tokens=64+core-neurons", beta=0.2, queries="all", prefill_from="none").method
    assert joined.identity()["parts"] == [
        {
            "name": "fastv",
            "options": {
                "tokens": 64,
                "prune_layer": FAKE.prune_layer,
                "queries": "all",
                "earlier_cache": "full",
            },
        },
        CoreNeurons(beta=0.2).identity(),
    ]
    assert make_model(method=CoreNeurons(), beta=0.2, neuron_sets="batch").method == CoreNeurons(
        beta=0.2, neuron_sets="batch"
    )
    assert make_model(method="random-tokens", seed=5, tokens="knee").method == RandomTokens(
        seed=5, prune_layer=FAKE.prune_layer
    )


def test_a_changed_file_of_ones_own_is_another_key(fake: FakeAnswer, tmp_path: Path) -> None:
    """lmms-eval's response cache goes by `repr`, the journal by the key of each question."""
    file, keys = tmp_path / "changing.py", []

    class Store(NoStore):
        def get(self, question: Question) -> str | None:
            keys.append(question.key)
            return None

    for comment in ("", "", "# changed"):
        file.write_text(MINE.read_text() + comment)
        model = make_model(method=f"{file}:ShortKeys", store=Store())
        model.generate_until(make_requests(["what is it?"]))
        keys.append(repr(model))
    assert keys[:2] == keys[2:4]
    assert not set(keys[4:]) & set(keys[:4])


def test_bad_arguments() -> None:
    with pytest.raises(ConfigError, match="batch_size is 'auto'"):
        make_model(batch_size="auto")
    with pytest.raises(UnknownNameError, match="did you mean 'beta'"):
        make_model(betta=0.2)
    with pytest.raises(UnknownNameError, match=r"option of fastv 'alpha': known are tokens, prune_layer, queries"):
        make_model(method="fastv", alpha=0.9)
    with pytest.raises(ConfigError, match=r"tokens is 'few'; accepted: knee, all, a count of at least 1"):
        make_model(method="core-tokens", tokens="few")
    with pytest.raises(ConfigError, match=r"the method is 3; accepted: a method such as"):
        make_model(method=3)
    with pytest.raises(UnknownNameError, match="did you mean 'core-tokens'"):
        make_model(method="core-tokenz")
