"""How much each token contributes to the last one: attention, and the projection-guided criterion (paper eq. 7, 8).

Only the last token's row of attention is computed, [B, heads, T]; the map itself never exists.
"""

import torch


def attention_row(query: torch.Tensor, keys: torch.Tensor, valid: torch.Tensor, scaling: float) -> torch.Tensor:
    """Softmax weights from the last token to every token.

    query: [B, heads, d]; keys: [B, kv_heads, T, d]; valid: bool [B, T], False for padding.
    Returns float32 [B, heads, T].
    """
    keys = keys.repeat_interleave(query.shape[1] // keys.shape[1], dim=1)
    logits = torch.einsum("bhd,bhtd->bht", query.float(), keys.float()) * scaling
    return logits.masked_fill(~valid[:, None], -torch.inf).softmax(-1)


def attention_scores(weights: torch.Tensor) -> torch.Tensor:
    """Mean over heads of the last token's attention (the score that FastV and others use). Returns [B, T]."""
    return weights.mean(1)


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
