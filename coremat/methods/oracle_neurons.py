"""Each token's largest activations, known beforehand: the upper bound of any choice of neurons.

Core neurons are one set for the whole answer. Deja Vu (Liu et al., ICML 2023) and PowerInfer (Song, Mi, Xie and Chen,
SOSP 2024) choose anew for every token; this is what a perfect predictor would choose.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from coremat.ffn.per_token import PerTokenFFN
from coremat.methods.corematching.core_neurons import core_count
from coremat.methods.layer_shares import LayerShares
from coremat.methods.options import Share


@dataclass(frozen=True, kw_only=True)
class OracleNeurons(LayerShares):
    """beta: share of the neurons that each token uses while decoding."""

    name: ClassVar[str] = "oracle-neurons"
    summary: ClassVar[str] = (
        "each token's largest activations, known beforehand: the upper bound of any predictor, without its speed"
    )
    paper: ClassVar[str] = "an upper bound of Deja Vu (ICML 2023) and PowerInfer (SOSP 2024)"
    accuracy_only: ClassVar[bool] = True

    beta: Share = 0.4

    def neuron_count(self, size: int) -> int:
        return core_count(size, self.beta)

    def decode_ffn(self, number: int, mlp: Any, state: Any) -> "OracleFFN":
        return OracleFFN(mlp, self.neuron_count(mlp.gate_proj.weight.shape[0]))


def oracle_neurons(activations: torch.Tensor, count: int) -> torch.Tensor:
    """Each token's `count` neurons of largest |activation|, ties to the lower index: what a perfect predictor says.

    activations: [B, q, F], the input of `down_proj`. Returns bool [B, q, F]. It needs every neuron's activation, so it
    saves no time.
    """
    size = activations.abs()
    # The count-th largest value is the same whichever way topk orders equal ones.
    cut = size.topk(count, dim=-1).values[..., -1:]
    above, equal = size > cut, size == cut
    room = count - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= room))


class OracleFFN(PerTokenFFN):
    """Every neuron is computed, each token's largest are used: accuracy, and no speed."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        active = self.mlp.act_fn(self.mlp.gate_proj(x)) * self.mlp.up_proj(x)
        return self.mlp.down_proj(active * oracle_neurons(active, self.count))
