"""What methods are told of the question: its text, from the caller or decoded, and its embeddings."""

from dataclasses import dataclass

import pytest
import torch

import coremat
from coremat.errors import ConfigError, UnsupportedError
from coremat.generate import question
from coremat.methods.base import Method, Reduction, Stage
from coremat.runtime.questions import question_embeddings, questions_of
from coremat.testing.answers import answer
from coremat.testing.families import FAMILIES
from coremat.testing.invariants import tiny

FAMILY = FAMILIES["llava"]


@dataclass(frozen=True)
class Reads(Method):
    """Notes the questions that its images belong to."""

    projector: bool = True

    def setup(self, model):
        return []

    def takes(self, slot):
        if slot in ("before_projector", "before_decoder"):
            return (slot == "before_projector") == self.projector
        return super().takes(slot)

    def stages(self, layers):
        return (Stage(0, 1.0),)

    def before_projector(self, image, keep):
        image.state.append(image.question.text)
        return Reduction(torch.ones(len(image.features), dtype=torch.bool))

    def before_decoder(self, image, keep):
        image.state.append((image.question.text, image.question.embeddings))
        return Reduction(torch.ones(len(image.features), dtype=torch.bool))


def read(questions, batch="left-padded", projector=True, **options):
    model = tiny(FAMILY)
    with coremat.apply(model, Reads(projector)) as session:
        session.questions = questions
        answer(model, FAMILY.batch(batch), 1, **options)
        return session._before._state


def words(ids):
    return " ".join(map(str, ids))


@pytest.mark.parametrize("projector", [True, False])
def test_each_image_has_the_question_of_its_sequence(projector):
    """The third prompt has two images, the fourth none."""
    found = read(["a", "b", "c", "d"], projector=projector)
    assert [one if projector else one[0] for one in found] == ["a", "b", "c", "c"]


def test_each_beam_has_the_question_of_its_prompt():
    assert set(read(["a", "b", "c", "d"], num_beams=3)) == {"a", "b", "c"}
    found = read(["a", "b", "c", "d"], projector=False, num_beams=3)
    assert [text for text, _ in found] == ["a"] * 3 + ["b"] * 3 + ["c"] * 6


def test_a_decoder_gets_the_ids_of_the_text_without_padding_and_images():
    assert read(words) == ["1 30 31 32", "1 33 34 35 36 37", "1 38 39 40 41", "1 38 39 40 41"]


def test_a_model_that_is_called_without_generate_has_them_too():
    model = tiny(FAMILY)
    with coremat.apply(model, Reads()) as session, torch.no_grad():
        session.questions = ["a"]
        model(**FAMILY.batch("one"))
        assert session._before._state == ["a"]


def test_nothing_is_decoded_that_is_not_read():
    def decode(ids):
        raise AssertionError

    model = tiny(FAMILY)
    with coremat.apply(model, "divprune:tokens=3") as session:
        session.questions = decode
        answer(model, FAMILY.batch("one"), 1)


def test_without_questions_one_sentence_says_what_to_give():
    with pytest.raises(ConfigError, match=r"the session has none: set session\.questions .* a tokenizer's decode\.$"):
        read(None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["a", "b", "c"], "3 questions for 4 sequences; accepted: one each"),
        ([], "0 questions for 4 sequences; accepted: one each"),
        ("what is it?", r"session\.questions is 'what is it\?'; accepted: a list of texts, one per sequence"),
    ],
)
def test_wrong_questions_are_one_sentence(given, said):
    with pytest.raises(ConfigError, match=said):
        read(given)


def test_embeddings_are_not_there_before_the_projector():
    [one] = questions_of(["a"], torch.ones(1, 3, dtype=torch.long), torch.tensor([[-1, 0, -1]]), None)
    assert one.text == "a"
    with pytest.raises(UnsupportedError, match="embeddings is read, which Question has not here; there are: text"):
        _ = one.embeddings


def test_embeddings_are_those_of_the_text_behind_the_last_image():
    model, inputs = tiny(FAMILY), FAMILY.batch("left-padded")
    found = [embeddings for _, embeddings in read(words, projector=False)]
    table = model.get_input_embeddings().weight
    for own, ids in zip(found, [[31, 32], [36, 37], [39, 40, 41], [39, 40, 41]], strict=True):
        torch.testing.assert_close(own, table[torch.tensor(ids)].detach())
    assert inputs["input_ids"].shape[0] == 4


def test_where_no_text_is_behind_the_image_all_of_it_counts():
    embeddings = torch.arange(6.0)[:, None]
    images, valid = torch.tensor([-1, -1, -1, 0, 0, 0]), torch.tensor([False, True, True, True, True, True])
    assert question_embeddings(embeddings, images, valid)[:, 0].tolist() == [1, 2]
    assert question_embeddings(embeddings[3:], images[3:], valid[3:]).shape == (0, 1)


@pytest.mark.parametrize(
    ("conversation", "text"),
    [
        ([{"role": "user", "content": "what?"}], "what?"),
        ([{"role": "user", "content": [{"type": "image", "image": 0}, {"type": "text", "text": "what?"}]}], "what?"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], "a b"),
        (
            [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "first"},
                {"role": "assistant", "content": "yes"},
                {"role": "user", "content": "second"},
                {"role": "assistant", "content": "well,"},
            ],
            "second",
        ),
        ([], ""),
    ],
)
def test_the_question_of_a_conversation_is_what_the_user_said_last(conversation, text):
    assert question(conversation) == text
