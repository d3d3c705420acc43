"""What methods that choose image tokens before the decoder take and give: one image at a time, plain tensors.

They read a `VisionView` (before the projector) or an image's embeddings (after it) and say which of its places stay and
what these hold from then on. Kept places ascend: whatever order a method's authors put tokens in, positions mean the
same here for every method.
"""

from dataclasses import dataclass

import torch

from coremat.errors import UnsupportedError
from coremat.projection import attention_row


@dataclass(frozen=True)
class Reduction:
    """Which places of an image stay, and what they hold now.

    keep: bool [N]; features: [N, C], what was there before where nothing new is put. Dropped places hold what they may.
    """

    keep: torch.Tensor
    features: torch.Tensor


@dataclass(frozen=True)
class VisionView:
    """One image before the projector.

    features: [N, C], what the projector gets; cls: [C], the class token at the same layer, if the tower has one;
    queries, keys: [1 + N, heads, d], the class token first, or [N, heads, d] without one, of the attention layer that
    the method asks for; grid: (rows, columns), if the places form one.
    """

    features: torch.Tensor
    cls: torch.Tensor | None
    queries: torch.Tensor
    keys: torch.Tensor
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        places, ones = len(self.features), int(self.cls is not None)
        for name in ("queries", "keys"):
            found = len(getattr(self, name))
            if found != places + ones:
                raise UnsupportedError(
                    f"the vision tower's attention has {found} {name} for {places} image tokens and {ones} class "
                    f"tokens; accepted: {places + ones}."
                )

    @property
    def patch_keys(self) -> torch.Tensor:
        """float32 [N, heads, d]."""
        return self.keys[-len(self.features) :].float()


def attention_on_patches(queries: torch.Tensor, keys: torch.Tensor, patches: int) -> torch.Tensor:
    """What the class token attends to: its softmax weights over all tokens, those of the patches. float32 [heads, N].

    Without a class token: what each patch receives, mean over the queries (one head's map at a time).
    queries, keys: [1 + N, heads, d] or [N, heads, d].
    """
    scaling = queries.shape[-1] ** -0.5
    if len(keys) > patches:
        seen = torch.ones(1, len(keys), dtype=torch.bool, device=keys.device)
        return attention_row(queries[:1], keys.transpose(0, 1)[None], seen, scaling)[0, :, 1:]
    heads = zip(queries.float().unbind(1), keys.float().unbind(1), strict=True)
    return torch.stack([(query @ key.T * scaling).softmax(-1).mean(0) for query, key in heads])
