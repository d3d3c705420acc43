"""The knee of a curve of scores: a count of tokens that the scores themselves suggest (paper eq. 6)."""

import torch


def knee(descending: torch.Tensor, signed: bool = False) -> int:
    """Index of the knee of a descending curve by maximum geometric distance (Garg & Walker 1990).

    The chord runs from the first to the last point; the knee is the point farthest from it, on either side or,
    with `signed`, below it only. Equal distances go to the lower index (fewer tokens). Whole-number scores are
    compared in int64, which is exact. A curve with nothing below its chord has no signed knee: then it is the end, so
    that everything is kept.
    """
    scores = descending.to(torch.float64 if descending.is_floating_point() else torch.int64)
    last = len(scores) - 1
    steps = torch.arange(last + 1, device=scores.device, dtype=scores.dtype)
    above = last * (scores - scores[0]) - steps * (scores[-1] - scores[0])
    distance = -above if signed else above.abs()
    farthest = distance.max()
    if signed and farthest <= 0:
        return last
    # argmax may return any of several equal ones on some devices; nonzero is in order.
    return int((distance == farthest).nonzero()[0])


def above_knee(scores: torch.Tensor, signed: bool = False) -> torch.Tensor:
    """The tokens that score at least as high as the knee (eq. 6). scores: [n]. Returns bool [n]."""
    descending = scores.sort(descending=True).values
    return scores >= descending[knee(descending, signed)]
