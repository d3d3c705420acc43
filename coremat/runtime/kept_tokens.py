"""Which tokens of a batch of prompts are still there, as places in its columns; stages of pruning compose."""

from dataclasses import dataclass
from functools import cached_property

import torch

from coremat.tensors import take


@dataclass(frozen=True, eq=False)
class KeptTokens:
    """index: int64 [B, K], for each row the prompt's columns that are there, real tokens ascending at the end, padding
    before them; None for the whole prompt, as it came. live: bool [B, K], False for padding."""

    index: torch.Tensor | None
    live: torch.Tensor
    live_on_host: torch.Tensor | None = None

    @classmethod
    def whole(cls, valid: torch.Tensor) -> "KeptTokens":
        """Before any token is pruned. valid: bool [B, S]."""
        return cls(None, valid)

    @cached_property
    def all_live(self) -> bool:
        """Whether nothing is padding; of a whole prompt the device is asked, once."""
        return bool((self.live if self.live_on_host is None else self.live_on_host).all())

    @property
    def width(self) -> int:
        return self.live.shape[1]

    @property
    def counts(self) -> torch.Tensor:
        """Real tokens of each row, int64 [B, 1]."""
        return self.live.sum(1, keepdim=True)

    def then(self, keep: torch.Tensor) -> "Narrowing":
        """Fewer of the tokens that are there. keep: bool [B, K], on the CPU. All rows are as wide as the fullest."""
        width = int(keep.sum(1).max())
        # Stable and False first: what stays ends up last, in its own order, after dropped columns where there is room.
        step = keep.to(torch.uint8).argsort(dim=1, stable=True)[:, -width:]
        live, step = keep.gather(1, step), step.to(self.live.device)
        index = step if self.index is None else self.index.gather(1, step)
        return Narrowing(KeptTokens(index, live.to(self.live.device), live), step)

    def of_prompt(self, values: torch.Tensor) -> torch.Tensor:
        """[B, S, ...] of the prompt's columns, cut to those that are there."""
        return values if self.index is None else take(values, self.index, 1)

    def in_prompt(self, size: int) -> torch.Tensor:
        """bool [B, S]: the prompt's columns that are there as tokens."""
        if self.index is None:
            return self.live
        return torch.zeros(len(self.live), size, dtype=torch.bool, device=self.live.device).scatter_(
            1, self.index, self.live
        )

    def step_to(self, later: "KeptTokens", size: int) -> torch.Tensor | None:
        """Where the columns of a later stage are among these: int64 [B, K of `later`]; None if it is the same stage."""
        if self is later or later.index is None:
            return None
        if self.index is None:
            return later.index
        places = torch.arange(self.width, device=self.index.device).expand_as(self.index)
        return (
            torch.zeros(len(self.index), size, dtype=torch.int64, device=self.index.device)
            .scatter_(1, self.index, places)
            .gather(1, later.index)
        )


@dataclass(frozen=True, eq=False)
class Narrowing:
    """The tokens that are left, and where they were among those before: int64 [B, K]."""

    kept: KeptTokens
    step: torch.Tensor
