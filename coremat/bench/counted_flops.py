"""Operations of a prefill as PyTorch counts them while it runs, to hold the formula of `coremat.cost.flops` against."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

from coremat.models.adapter import Adapter


def counted_prefill_flops(adapter: Adapter, inputs: Mapping[str, torch.Tensor]) -> int:
    """Of all decoder layers and the last token's head; attention in full, as the formula has it, causal or not.

    Rotary frequencies are left out. Attention runs eagerly meanwhile: not every fused kernel is known to the counter.
    """
    before: list[int] = []
    with _eager_attention(adapter), ExitStack() as undo, torch.inference_mode():
        counter = undo.enter_context(FlopCounterMode(display=False))
        first = adapter.layers[0]
        undo.callback(first.register_forward_pre_hook(lambda *_: before.append(counter.get_total_flops())).remove)
        adapter.model(**inputs, logits_to_keep=1, use_cache=True)
    return counter.get_total_flops() - before[0]


@contextmanager
def _eager_attention(adapter: Adapter) -> Iterator[None]:
    model, own = adapter.model, adapter.decoder.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(own)
