"""How many scores stand out: Tukey's fence above the third quartile."""

import torch

from coremat.methods.common.picks import highest


def outliers(scores: torch.Tensor, fence: float = 1.5) -> torch.Tensor:
    """The places whose score is above the third quartile by more than `fence` interquartile ranges; the best one where
    none is. scores: [N]. Returns bool [N]."""
    low, high = scores.quantile(scores.new_tensor([0.25, 0.75]))
    return highest(scores, max(1, int((scores > high + fence * (high - low)).sum())))
