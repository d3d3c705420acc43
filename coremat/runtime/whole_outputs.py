"""Outputs of a pruned prefill, one place for each token of the prompt: what is asked by position is found by position.

`generate` looks at the last token alone, and nothing is done for it. A call of the model itself gets hidden states and
logits for the whole prompt; logits of dropped tokens are NaN. A loss is over the tokens that stayed.
"""

from typing import Any

import torch
from torch import nn

from coremat.hooks import Hooks
from coremat.runtime.prompt import Prompt

IGNORED = -100  # a label that no loss counts


class WholeOutputs:
    def __init__(self) -> None:
        self._wanted: Any = None
        self._labels: torch.Tensor | None = None
        self._dropped: torch.Tensor | None = None

    def install(self, hooks: Hooks, model: nn.Module) -> None:
        hooks.before(model, self._see_call)
        hooks.after(model, self._mark)

    def _see_call(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        self._wanted, self._dropped = kwargs.get("logits_to_keep"), None
        self._labels = kwargs.get("labels")
        if self._labels is None:
            return None
        self._labels = self._labels.clone()
        return args, kwargs | {"labels": self._labels}

    def whole(self, output: Any, prompt: Prompt) -> Any:
        """The decoder's output, its hidden states [B, S, H] with zeros where a token was dropped."""
        kept, only_last = prompt.present.kept, isinstance(self._wanted, int) and self._wanted == 1
        if kept.index is None or (only_last and self._labels is None):
            return None
        hidden, size = output.last_hidden_state, prompt.valid.shape[1]
        places = kept.index[..., None].expand_as(hidden)
        own = hidden.masked_fill(~kept.live[..., None], 0)  # columns that fill a row up may be those of dropped tokens
        output.last_hidden_state = own.new_zeros(len(own), size, own.shape[-1]).scatter(1, places, own)
        self._dropped = ~kept.in_prompt(size) & prompt.valid
        if self._labels is not None:  # the loss comes after this, and compares each token with the next label
            self._labels[:, 1:][self._dropped[:, :-1].to(self._labels.device)] = IGNORED
        return output

    def _mark(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """NaN in place of the logits of tokens that were dropped."""
        wanted, labels, dropped = self._wanted, self._labels, self._dropped
        self._wanted = self._labels = self._dropped = None
        if dropped is None:
            return None
        if isinstance(output, tuple):  # the loss comes first where there is one
            place = int(labels is not None)
            return (*output[:place], _masked(output[place], dropped, wanted), *output[place + 1 :])
        output.logits = _masked(output.logits, dropped, wanted)
        return output


def _masked(logits: torch.Tensor, dropped: torch.Tensor, wanted: int | torch.Tensor | None) -> torch.Tensor:
    """wanted: `logits_to_keep`, positions or a count from the end."""
    own = dropped[:, wanted] if isinstance(wanted, torch.Tensor) else dropped[:, -(wanted or 0) :]
    return logits.masked_fill(own[..., None], torch.nan)
