"""Exact match and the F1 of a listing."""

import pytest

from coremat.tasks.bundled.scoring import exact_match, listing_f1
from coremat.tasks.bundled.shapes.utils import process_results


@pytest.mark.parametrize(
    ("answer", "target", "score"),
    [
        ("yes", "yes", 1),
        (" Yes.\n", "yes", 1),
        ("red circle,  sign", "red circle, sign", 1),
        ("no", "yes", 0),
        ("", "yes", 0),
        ("yes yes", "yes", 0),
    ],
)
def test_exact_match(answer: str, target: str, score: float) -> None:
    assert exact_match(answer, target) == score


@pytest.mark.parametrize(
    ("answer", "target", "score"),
    [
        ("red circle, sign", "red circle, sign", 1),
        ("Sign, Red circle.", "red circle, sign", 1),  # the order is for exact match to judge
        ("red circle", "red circle, red circle", 2 / 3),
        ("red circle, red circle", "red circle", 2 / 3),
        ("red circle, blue ring, sign", "red circle, sign", 4 / 5),
        ("blue ring", "red circle", 0),
        ("", "red circle", 0),
        (" , ,", "red circle", 0),
    ],
)
def test_listing_f1(answer: str, target: str, score: float) -> None:
    assert listing_f1(answer, target) == pytest.approx(score)


def test_only_listings_have_an_f1() -> None:
    assert process_results({"kind": "color", "answer": "red"}, ["red"]) == {"accuracy": 1.0}
    listing = {"kind": "listing", "answer": "red ring, sign"}
    assert process_results(listing, ["red ring"]) == {"accuracy": 0.0, "listing_f1": pytest.approx(2 / 3)}
