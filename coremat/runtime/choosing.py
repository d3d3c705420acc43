"""From a stage's scores to the tokens that stay. One sequence at a time, on the CPU."""

from collections.abc import Sequence

import torch

from coremat.errors import UnsupportedError
from coremat.methods.base import Stage
from coremat.methods.budget import budget
from coremat.methods.common.knee import above_knee
from coremat.methods.common.picks import best_with_each_image, highest, with_each_image


def keep_tokens(
    stage: Stage,
    scores: torch.Tensor,
    counted_by: torch.Tensor | None,
    image_index: torch.Tensor,
    valid: torch.Tensor,
    seen: Sequence[int],
) -> torch.Tensor:
    """All text, the image tokens that the stage keeps, and the last token: bool [B, T].

    scores, counted_by (see `Method`): [B, T]; image_index: int64 [B, T], -1 for text and padding; valid: bool [B, T];
    seen: image tokens of each whole prompt, of which a share is meant.
    """
    keep = valid & (image_index < 0)
    _check_finite(stage, scores, image_index >= 0)
    for row, image in enumerate(image_index):
        own = (image >= 0).nonzero()[:, 0]
        if len(own):
            counted = None if counted_by is None else counted_by[row, own]
            keep[row, own] = _keep_image_tokens(stage, scores[row, own], counted, image[own], seen[row])
    keep[:, -1] |= valid[:, -1]  # the first new token comes out of the last column, even if that is an image's
    return keep


def _keep_image_tokens(
    stage: Stage, scores: torch.Tensor, counted_by: torch.Tensor | None, image: torch.Tensor, seen: int
) -> torch.Tensor:
    """Scores and image number of a sequence's n image tokens that are there. Returns bool [n]."""
    if not isinstance(stage.keep, str):
        return best_with_each_image(scores, budget(stage.keep, seen), image)
    if counted_by is None:
        keep = above_knee(scores, stage.knee == "signed")
    else:
        keep = highest(scores, int(above_knee(counted_by, stage.knee == "signed").sum()))
    return with_each_image(keep, scores, image)


def _check_finite(stage: Stage, scores: torch.Tensor, image: torch.Tensor) -> None:
    wrong = ~torch.isfinite(scores) & image
    if wrong.any():
        raise UnsupportedError(
            f"the scores of {int(wrong.sum())} image tokens are NaN or infinite, after decoder layer "
            f"{stage.after - 1}; accepted: finite scores."
        )
