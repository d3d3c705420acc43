"""FastV: after an early layer only the image tokens that the last token attends to most go on.

Chen, Zhao, Liu, Bai, Lin, Zhou and Chang, "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024: after layer K
(`prune_layer`) the R % (1 - `tokens`) of image tokens with the least attention leave. In the paper's words the score is
the average attention that a token receives; the authors' code takes the row of the last prompt token, mean over heads.
K = 2 and R = 50 % are the paper's; the released demonstration has K = 3 and R = 75 % (`prune_layer=3:tokens=0.25`).

Departures: the authors' code with a KV cache lets all later layers read the keys and values of layer K, a fault that is
not repeated here. Of several images each keeps at least one token. Only the rows of attention that the score needs are
computed, from the cached keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from coremat.methods.base import Method, Stage
from coremat.methods.options import EarlierCache, FixedBudget, Layer
from coremat.methods.views import LayerView

BLOCK = 64  # query tokens whose attention is computed at a time


@dataclass(frozen=True, kw_only=True)
class FastV(Method):
    """queries: whose attention counts: "last", the last prompt token's (the code), or "all" tokens' (the paper).

    earlier_cache: "full" (the authors': the first K layers keep all keys and values) or "cut".
    """

    name: ClassVar[str] = "fastv"
    summary: ClassVar[str] = "FastV: half of the image tokens, by the last token's attention in layer 2"
    paper: ClassVar[str] = "Chen et al., ECCV 2024 (arXiv 2403.06764)"
    departures: ClassVar[str] = (
        "later layers have keys and values of their own; of several images each keeps at least one token"
    )

    tokens: FixedBudget = 0.5
    prune_layer: Layer = 2
    queries: Literal["last", "all"] = "last"
    earlier_cache: EarlierCache = "full"

    def stages(self, layers: int) -> Sequence[Stage]:
        return (Stage(self.prune_layer, self.tokens, earlier_cache=self.earlier_cache),)

    def score(self, stage: Stage, layer: LayerView) -> torch.Tensor:
        return layer.attention("last").mean((1, 2)) if self.queries == "last" else attention_received(layer)


def attention_received(layer: LayerView) -> torch.Tensor:
    """The attention that each token receives, mean over heads and over all real query tokens: float32 [B, T]."""
    batch, tokens = layer.valid.shape
    total = torch.zeros(batch, tokens, device=layer.valid.device)
    for start in range(0, tokens, BLOCK):
        columns = torch.arange(start, min(start + BLOCK, tokens), device=layer.valid.device).expand(batch, -1)
        padding = ~layer.valid.gather(1, columns)[..., None]  # whose softmax is over nothing
        total += layer.attention(columns).mean(1).masked_fill(padding, 0).sum(1)
    return total / layer.valid.sum(1, keepdim=True)
