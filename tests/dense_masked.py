"""The dense model that sparsity is held against: nothing leaves it, what is dropped is only hidden."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from tiny import Chosen
from torch import nn
from transformers import LlavaForConditionalGeneration

from coremat import SparsityConfig


@contextmanager
def dense_masked(model: LlavaForConditionalGeneration, config: SparsityConfig, choice: Chosen) -> Iterator[None]:
    """Inside the block dropped columns get -inf from layer `prune_layer` on, in every layer while decoding, and the
    activations of other than the chosen neurons are zeroed at `down_proj` while decoding."""
    masking = _Masking(config, choice)
    with ExitStack() as undo:
        decoder = model.get_decoder()
        undo.callback(decoder.register_forward_pre_hook(masking.begin, with_kwargs=True).remove)
        for number, layer in enumerate(decoder.layers):
            if config.prunes_tokens:
                undo.callback(layer.register_forward_pre_hook(masking.hide(number), with_kwargs=True).remove)
            undo.callback(layer.mlp.down_proj.register_forward_pre_hook(masking.silence(number)).remove)
        yield


class _Masking:
    def __init__(self, config: SparsityConfig, choice: Chosen) -> None:
        self.config, self.choice, self.prefill = config, choice, True

    def begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        cache = kwargs.get("past_key_values")
        self.prefill = cache is None or cache.get_seq_length() == 0

    def hide(self, number: int) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            new = args[0].shape[1]
            cached = 0 if self.prefill else kwargs["past_key_values"].layers[number].keys.shape[2]
            whole = self.prefill and number < self.config.prune_layer
            seen = self.choice.valid if whole else self.choice.keep
            mask = additive(seen, cached, new, args[0].dtype, kwargs.get("attention_mask"))
            return args, kwargs | {"attention_mask": mask}

        return hook

    def silence(self, number: int) -> Callable:
        def hook(module: nn.Module, args: tuple) -> tuple | None:
            chosen = self.choice.neurons.get(number)
            early = self.config.neurons_in_prefill and number >= self.config.prune_layer
            if chosen is None or (self.prefill and not early):
                return None
            loud = torch.zeros(len(chosen), args[0].shape[-1], dtype=args[0].dtype).scatter_(1, chosen, 1)
            return (args[0] * loud[:, None],)

        return hook


def additive(
    seen: torch.Tensor, cached: int, new: int, dtype: torch.dtype, own: torch.Tensor | None = None
) -> torch.Tensor:
    """[B, 1, new, cached + new]: 0 for the prompt's `seen` columns and all later ones, -inf for the others and for
    what the model's `own` mask (bool, or what is added to the logits) hides; causal where there is none."""
    width = cached + new
    columns = torch.cat([seen, seen.new_ones(len(seen), width - seen.shape[1])], 1)
    diagonal = torch.arange(width) == torch.arange(cached, width)[:, None]  # so that no softmax is empty
    if own is None:
        allowed = torch.arange(width) <= torch.arange(cached, width)[:, None]
    else:
        allowed = (own if own.dtype == torch.bool else own == 0)[:, 0]
    allowed = (columns[:, None] & allowed) | diagonal
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, -torch.inf)[:, None]
