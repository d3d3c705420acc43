"""Core tokens: which image tokens matter, told by the core neurons that they activate (paper section 2.2, eq. 5 and 6).

Pure functions. Scores are one number per image token of one sequence; larger is more important.
"""

import torch

from coremat.config import as_fraction
from coremat.core_neurons import activated, count_true


def core_neuron_counts(activations: torch.Tensor, core: torch.Tensor) -> torch.Tensor:
    """|Gamma(x_m) with C|: how many core neurons each token activates (eq. 5).

    activations: [B, T, F]; core: bool [B, F]. Returns int64 [B, T].
    """
    return count_true(activated(activations) & core[:, None])


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


def highest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` best tokens, ties to the lower index. scores: [n]. Returns bool [n]."""
    keep = torch.zeros_like(scores, dtype=torch.bool)
    keep[scores.sort(descending=True, stable=True).indices[:count]] = True
    return keep


def budget(tokens: int | float, seen: int) -> int:
    """How many of `seen` image tokens a count or a share keeps: at least one, at most all."""
    count = int(as_fraction(tokens) * seen) if isinstance(tokens, float) else tokens
    return min(seen, max(1, count))


def one_per_image(keep: torch.Tensor, scores: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """`keep`, and the best token of every image that would have lost all. image: int64 [n], the image of each."""
    for number in image.unique().tolist():
        own = image == number
        if not keep[own].any():
            keep = keep | (own & highest(torch.where(own, scores, scores.min() - 1), 1))
    return keep
