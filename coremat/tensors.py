"""Small operations on tensors that several packages share."""

import torch


def take(x: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    """Per-row selection: x [B or 1, ...], index [B, K]: `x` narrowed along `dim` to each row's own K."""
    if len(x) == 1 and len(index) > 1:
        x = x.expand(len(index), *x.shape[1:])
    view = [1] * x.dim()
    view[0], view[dim] = index.shape
    size = list(x.shape)
    size[dim] = index.shape[1]
    return x.gather(dim, index.view(view).expand(size))


def membership(chosen: torch.Tensor, size: int) -> torch.Tensor:
    """bool [B, size] of index lists [B, m]."""
    member = torch.zeros(chosen.shape[0], size, dtype=torch.bool, device=chosen.device)
    return member.scatter_(1, chosen, True)


def on_host(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Tensors of one shape on the CPU, by one transfer: whole numbers up to 2^53 and all floats pass it unchanged."""
    if tensors[0].device.type == "cpu":
        return list(tensors)
    moved = torch.stack([t.double() for t in tensors]).cpu()
    return [row.to(t.dtype) for row, t in zip(moved, tensors, strict=True)]


def token_positions(there: torch.Tensor) -> torch.Tensor:
    """Position of each token that is there, counted from 0 as `generate` counts: int64 [B, S]; of others any."""
    return (there.cumsum(-1) - 1).clamp(min=0)
