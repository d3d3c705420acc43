"""What single answers tell beyond the table: accuracy by kind and by length of answer, and paired comparisons.

All functions take the samples of a run (`record.read_samples`) and count accuracy in per cent.
"""

from collections.abc import Sequence

import pandas

from coremat.errors import UnknownNameError
from coremat.names import DENSE
from coremat.results.statistics import paired_bootstrap, standard_error

LENGTHS = ((1, 3), (4, 9), (10, 10_000))  # tokens of the dense answer, end token included


def accuracy_by(samples: pandas.DataFrame, column: str) -> pandas.DataFrame:
    """Accuracy, its standard error and the number of samples, per method (rows as they were run) and `column`."""
    rows = []
    for (method, value), group in samples.groupby(["method", column], sort=False):
        error = standard_error(group["correct"].tolist())
        rows.append(
            {
                "method": method,
                column: value,
                "accuracy": 100 * group["correct"].mean(),
                "stderr": None if error is None else 100 * error,
                "samples": len(group),
            }
        )
    return pandas.DataFrame(rows)


def with_answer_length(samples: pandas.DataFrame, reference: str = DENSE) -> pandas.DataFrame:
    """`samples` with a column `answer_tokens`: the class of length of the reference method's answer to the question."""
    own = samples[samples["method"] == _known(samples, reference)]
    lengths = own.set_index(["task", "doc_id"])["new_tokens"].map(_length_class)
    return samples.join(lengths.rename("answer_tokens"), on=["task", "doc_id"])


def _length_class(tokens: int) -> str:
    low, high = next((low, high) for low, high in LENGTHS if low <= tokens <= high)
    return f"{low} to {high}" if high < LENGTHS[-1][1] else f"{low} and more"


def compare(samples: pandas.DataFrame, pairs: Sequence[tuple[str, str]]) -> pandas.DataFrame:
    """Accuracy of a minus that of b in points, with its 95 % interval (paired bootstrap over questions)."""
    rows = []
    for first, second in pairs:
        a, b = (_scores(samples, method) for method in (first, second))
        shared = a.index.intersection(b.index)
        difference, low, high = paired_bootstrap((100 * a[shared]).tolist(), (100 * b[shared]).tolist())
        rows.append(
            {"a": first, "b": second, "difference": difference, "low": low, "high": high, "samples": len(shared)}
        )
    return pandas.DataFrame(rows)


def _scores(samples: pandas.DataFrame, method: str) -> pandas.Series:
    return samples[samples["method"] == _known(samples, method)].set_index(["task", "doc_id"])["correct"].astype(float)


def _known(samples: pandas.DataFrame, method: str) -> str:
    methods = list(dict.fromkeys(samples["method"]))
    if method not in methods:
        raise UnknownNameError("method of this run", method, methods)
    return method
