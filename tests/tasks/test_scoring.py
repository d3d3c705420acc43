"""Exact match, and how right a listing is: in full, and by the F1 of its items."""

import pytest

from coremat.tasks.bundled.scoring import exact_match, listing_f1, listing_match
from coremat.tasks.bundled.shapes.generator import make_questions, make_scene
from coremat.tasks.bundled.shapes.utils import process_results


@pytest.mark.parametrize(
    ("answer", "target", "score"),
    [
        ("yes", "yes", 1),
        (" Yes.\n", "yes", 1),
        ("red  circle", "red circle", 1),
        ("no", "yes", 0),
        ("", "yes", 0),
        ("yes yes", "yes", 0),
    ],
)
def test_exact_match(answer: str, target: str, score: float) -> None:
    assert exact_match(answer, target) == score


LISTINGS = [  # answer, target, whether it is right, F1
    ("red circle, sign", "red circle, sign", 1, 1),
    (" Red  circle,\nSIGN. ", "red circle, sign", 1, 1),
    ("red circle,sign", "red circle, sign", 1, 1),
    ("red circle , sign", "red circle, sign", 1, 1),
    ("sign, sign", "sign, sign", 1, 1),
    ("sign, red circle", "red circle, sign", 0, 1),  # the order is for the whole answer to have
    ("red circle", "red circle, red circle", 0, 2 / 3),
    ("red circle, blue ring, sign", "red circle, sign", 0, 4 / 5),
    ("blue ring", "red circle", 0, 0),
    # a separator too many: each empty item is a wrong one
    ("sign,,,", "sign", 0, 2 / 5),
    ("red circle, sign,", "red circle, sign", 0, 4 / 5),
    ("red circle, sign,.", "red circle, sign", 0, 4 / 5),
    (", red circle, sign", "red circle, sign", 0, 4 / 5),
    ("red circle,, sign", "red circle, sign", 0, 4 / 5),
    ("red circle, , , sign", "red circle, sign", 0, 2 / 3),
    ("", "red circle", 0, 0),
    (" , ,", "red circle", 0, 0),
    # one that is missing or another: what it should divide is one wrong item
    ("red circle sign", "red circle, sign", 0, 0),
    ("red circle and sign", "red circle, sign", 0, 0),
    ("red circle; sign", "red circle, sign", 0, 0),
    ("red circle. sign", "red circle, sign", 0, 0),
    ("red circle, blue ring sign", "red circle, blue ring, sign", 0, 2 / 5),
    ("red, circle, sign", "red circle, sign", 0, 2 / 5),
    # what is no object to the letter
    ("red circle, sign;", "red circle, sign", 0, 1 / 2),
    ("red circle., sign", "red circle, sign", 0, 1 / 2),
    ("red circle, sign..", "red circle, sign", 0, 1 / 2),
    ("redcircle, sign", "red circle, sign", 0, 1 / 2),
    ("a red circle, sign", "red circle, sign", 0, 1 / 2),
    # repeated
    ("red circle, red circle", "red circle", 0, 2 / 3),
    ("sign, sign, sign, sign", "red circle, sign", 0, 1 / 3),
]


@pytest.mark.parametrize(("answer", "target", "right", "f1"), LISTINGS)
def test_a_listing(answer: str, target: str, right: float, f1: float) -> None:
    assert listing_match(answer, target) == right
    assert listing_f1(answer, target) == pytest.approx(f1)


@pytest.mark.parametrize(("answer", "target", "right", "f1"), LISTINGS)
def test_an_answer_is_right_only_if_all_its_items_are(answer: str, target: str, right: float, f1: float) -> None:
    assert right <= listing_f1(answer, target)
    assert right == 0 or f1 == 1


def test_the_answers_of_the_task_are_right_and_lose_by_a_comma() -> None:
    asked = [one for number in range(20) for one in make_questions(make_scene((3, number)), 0, 8)]
    answers = [one.answer for one in asked if one.kind == "listing"]
    assert len(answers) == 20
    for answer in answers:
        assert listing_match(answer, answer) == listing_f1(answer, answer) == 1
        assert listing_match(answer.replace(",", ""), answer) == listing_f1(answer.replace(",", ""), answer) == 0
        for broken in (f"{answer},", f",{answer}", answer.replace(",", ",,"), answer + ",,,"):
            assert listing_match(broken, answer) == 0 < listing_f1(broken, answer) < 1


def test_only_listings_have_an_f1() -> None:
    assert process_results({"kind": "color", "answer": "red"}, ["Red,"]) == {"accuracy": 1.0}
    listing = {"kind": "listing", "answer": "red ring, sign"}
    assert process_results(listing, ["red ring"]) == {"accuracy": 0.0, "listing_f1": pytest.approx(2 / 3)}
    assert process_results(listing, ["red ring sign"]) == {"accuracy": 0.0, "listing_f1": 0.0}
    assert process_results(listing, ["red ring, sign,"]) == {"accuracy": 0.0, "listing_f1": pytest.approx(4 / 5)}
    assert process_results(listing, ["Red ring, sign"]) == {"accuracy": 1.0, "listing_f1": 1.0}
