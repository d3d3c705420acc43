"""How sure a score is: its standard error, and the interval of a difference between two methods.

Two methods answer the same questions, so their difference is judged pair by pair: the questions that both
get right or both get wrong say nothing about which is better, and comparing two standard errors ignores that.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from coremat.errors import DataError

DRAWS_AT_ONCE = 1 << 22  # bounds the memory of the bootstrap: 32 MiB of counts

Scores = Sequence[float] | Sequence[bool] | npt.NDArray[np.generic]


def standard_error(scores: Scores) -> float | None:
    """The standard error of the mean of one score per sample, in their unit; None below two samples."""
    values = _values(scores)
    if len(values) < 2:
        return None
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def clustered_mean(sums: Scores, sizes: Scores) -> tuple[float, float | None]:
    """The mean over the members of all clusters, and its standard error over the clusters; None below two clusters.

    sums, sizes: of each cluster the sum of its members' values and their number, above 0. Members of one cluster (the
    tokens of one answer) are alike, so it is clusters that are drawn: the error of a ratio of means, by linearisation
    (Cochran, Sampling Techniques, 1977, eq. 2.46). With equal sizes it is `standard_error` of the clusters' means.
    """
    total, number = _values(sums), _values(sizes)
    if not len(number) or len(total) != len(number):
        raise DataError(f"a mean over clusters needs a sum and a size of each, not {len(total)} and {len(number)}")
    mean = float(total.sum() / number.sum())
    error = standard_error(total - mean * number)
    return mean, None if error is None else error / float(number.mean())


def paired_bootstrap(a: Scores, b: Scores, repeats: int = 10_000, seed: int = 0) -> tuple[float, float, float]:
    """mean(a - b) and its 95 % percentile interval (low, high), in the unit of the scores.

    a[i] and b[i] are the scores of the same sample. The same input gives the same interval, in any order
    of the samples. DataError if the lengths differ or there is no sample.
    """
    first, second = _values(a), _values(b)
    if len(first) != len(second) or not len(first):
        raise DataError(f"a paired comparison needs as many scores on both sides, not {len(first)} and {len(second)}")
    means = _resampled_means(first - second, repeats, np.random.default_rng(seed))
    low, high = np.percentile(means, (2.5, 97.5))
    return float((first - second).mean()), float(low), float(high)


def _values(scores: Scores) -> npt.NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError("a score is missing or infinite: leave that sample out on both sides first")
    return values


def _resampled_means(
    differences: npt.NDArray[np.float64], repeats: int, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Means of `repeats` resamples with replacement, [repeats].

    Drawing how often each distinct value occurs is the same distribution as drawing samples one by one, and
    there are three distinct values for right or wrong answers, however many questions.
    """
    values, counts = np.unique(differences, return_counts=True)
    share = counts / counts.sum()
    size = max(1, DRAWS_AT_ONCE // len(values))
    parts = [min(size, repeats - start) for start in range(0, repeats, size)]
    draws = (generator.multinomial(len(differences), share, size=part) @ values for part in parts)
    return np.concatenate(list(draws)) / len(differences)
