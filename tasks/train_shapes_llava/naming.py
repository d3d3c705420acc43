"""The auxiliary task of the trainings: what covers each patch is named from its features."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from coremat.tasks.train_shapes_llava.architecture import HIDDEN
from coremat.tasks.train_shapes_llava.data import COLOR_LABELS, SHAPE_LABELS, Example
from coremat.tasks.train_shapes_llava.packing import IGNORE

GROUND_WEIGHT = 0.1


class PatchNamer(nn.Module):
    """The auxiliary heads: colour and shape of what covers an image token [B, 144, H]."""

    def __init__(self) -> None:
        super().__init__()
        self.color = nn.Linear(HIDDEN, len(COLOR_LABELS))
        self.shape = nn.Linear(HIDDEN, len(SHAPE_LABELS))

    def loss(self, features: torch.Tensor, batch: list[Example]) -> tuple[torch.Tensor, float]:
        """Cross entropy with the ground weighted down, and the share of object tokens named right."""
        losses, hits = [], []
        for head, which in ((self.color, 0), (self.shape, 1)):
            target = torch.from_numpy(np.stack([e.labels[which] for e in batch])).flatten()
            logits = head(features).flatten(0, 1).float()
            weight = torch.ones(logits.shape[-1])
            weight[0] = GROUND_WEIGHT
            losses.append(F.cross_entropy(logits, target, weight, ignore_index=IGNORE))
            hits.append((logits.argmax(-1) == target)[target > 0])
        return losses[0] + losses[1], float((hits[0] & hits[1]).float().mean())
