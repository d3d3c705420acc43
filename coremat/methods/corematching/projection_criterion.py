"""How much each token contributes to the last one: attention, and the projection-guided criterion (paper eq. 7, 8).

Only the last token's row of attention is computed; the map itself never exists.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from coremat.methods.attention_tokens import AttentionTokens
from coremat.methods.base import Stage
from coremat.methods.views import LayerView


def projection_values(weights: torch.Tensor, values: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """p_m: length of the projection of token m's contribution on the last token's attention output (eq. 8).

    With u_m = sum_h a_mh v_mh W_O,h and o = sum_m u_m, p_m = u_m . o / |o|; the p_m of a row add up to |o|.
    weights: [B, heads, T]; values: [B, kv_heads, T, d]; output: W_O [H, heads * d]. Returns float32 [B, T].
    """
    heads = weights.shape[1]
    values = values.repeat_interleave(heads // values.shape[1], dim=1).float()
    mixed = torch.einsum("bht,bhtd->bhd", weights, values)
    total = mixed.flatten(1) @ output.float().T
    direction = total / total.norm(dim=-1, keepdim=True)
    # u_m . o/|o| = sum_h a_mh v_mh . (W_O,h^T o/|o|): the direction is brought to the heads, not each u_m to H.
    back = (direction @ output.float()).unflatten(-1, (heads, -1))
    return torch.einsum("bht,bhtd,bhd->bt", weights, values, back)


@dataclass(frozen=True, kw_only=True)
class ProjectionTokens(AttentionTokens):
    """The options of attention-tokens, with eq. 8 as the score."""

    name: ClassVar[str] = "projection-tokens"
    summary: ClassVar[str] = "image tokens above the knee of the projection criterion (eq. 8)"
    paper: ClassVar[str] = "CoreMatching (ICML 2025), section 3, eq. 7 and 8"

    def score(self, stage: Stage, layer: LayerView) -> torch.Tensor:
        return projection_values(layer.attention("last")[:, :, 0], layer.values, layer.output_weight)
