"""Accuracy by kind and length, and paired comparisons, on answers counted by hand."""

import pandas
import pytest

from coremat.errors import UnknownNameError
from coremat.results.analysis import accuracy_by, compare, with_answer_length


@pytest.fixture
def samples() -> pandas.DataFrame:
    """Four questions; dense gets 3 right, sparse 1 of the same, in another order."""
    dense = [("dense", 0, 2, 1), ("dense", 1, 3, 1), ("dense", 2, 4, 0), ("dense", 3, 12, 1)]
    sparse = [("sparse", 3, 2, 0), ("sparse", 2, 9, 0), ("sparse", 1, 3, 0), ("sparse", 0, 2, 1)]
    rows = [{"task": "t", "method": m, "doc_id": d, "new_tokens": n, "correct": c} for m, d, n, c in dense + sparse]
    return pandas.DataFrame(rows)


def test_accuracy_by_counts_each_group(samples: pandas.DataFrame) -> None:
    frame = accuracy_by(samples, "task").set_index("method")
    assert frame["accuracy"].to_dict() == {"dense": 75.0, "sparse": 25.0}
    assert frame["samples"].to_dict() == {"dense": 4, "sparse": 4}


def test_answers_are_classed_by_the_length_that_dense_gave(samples: pandas.DataFrame) -> None:
    classes = with_answer_length(samples).set_index(["method", "doc_id"])["answer_tokens"]
    for method in ("dense", "sparse"):
        assert [classes[method, doc] for doc in range(4)] == ["1 to 3", "1 to 3", "4 to 9", "10 and more"]


def test_compare_pairs_the_same_questions(samples: pandas.DataFrame) -> None:
    [row] = compare(samples, [("dense", "sparse")]).to_dict("records")
    assert (row["difference"], row["samples"]) == (50.0, 4)
    assert row["low"] <= 50 <= row["high"]
    [none] = compare(samples, [("dense", "dense")]).to_dict("records")
    assert (none["difference"], none["low"], none["high"]) == (0, 0, 0)


def test_a_method_that_was_not_run_is_named(samples: pandas.DataFrame) -> None:
    with pytest.raises(UnknownNameError, match="sparsee"):
        compare(samples, [("dense", "sparsee")])
