"""Attention weights of a few query tokens; no attention map is ever made."""

import torch


def attention_weights(queries: torch.Tensor, keys: torch.Tensor, seen: torch.Tensor, scaling: float) -> torch.Tensor:
    """Softmax weights of query tokens over key tokens.

    queries: [B, heads, q, d]; keys: [B, kv_heads, T, d]; seen: bool [B, q, T], what a query may attend to.
    Returns float32 [B, heads, q, T].
    """
    heads, count = keys.shape[1], queries.shape[2]
    of_each = queries.float().reshape(
        len(queries), heads, -1, queries.shape[-1]
    )  # the queries that share a head's keys
    logits = (of_each @ keys.float().transpose(2, 3)).view(len(queries), -1, count, keys.shape[2]) * scaling
    return logits.masked_fill(~seen[:, None], -torch.inf).softmax(-1)


def class_attention(queries: torch.Tensor, keys: torch.Tensor, patches: int) -> torch.Tensor:
    """What a vision tower's class token attends to: its softmax weights over all tokens, those of the patches.

    Without a class token: what each patch receives, mean over the queries (one head's map at a time).
    queries, keys: [1 + N, heads, d] or [N, heads, d]. Returns float32 [heads, N].
    """
    scaling = queries.shape[-1] ** -0.5
    if len(keys) > patches:
        seen = torch.ones(1, 1, len(keys), dtype=torch.bool, device=keys.device)
        rows = queries[:1].transpose(0, 1)[None], keys.transpose(0, 1)[None]
        return attention_weights(*rows, seen, scaling)[0, :, 0, 1:]
    heads = zip(queries.float().unbind(1), keys.float().unbind(1), strict=True)
    return torch.stack([(query @ key.T * scaling).softmax(-1).mean(0) for query, key in heads])
