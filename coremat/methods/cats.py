"""CATS: neurons whose gate is small are left out, token by token, by a threshold for each layer.

Lee et al., "CATS: Contextually-Aware Thresholding for Sparsity in Large Language Models", COLM 2024 (arXiv
2404.08763): with t the quantile of |act(gate x)| over calibration data, a token's neurons are those with
|act(gate x)| >= t. The gate is computed whole; up and down are read for these neurons only.

Departures: quantiles for every thousandth, so that one calibration serves all shares; they are taken at tokens of
answers (the authors': of text), for only there neurons are left out. Up and down are read for these neurons only on a
CPU, of a step whose tokens together want fewer than there are (a batch soon wants more; of 16 bits up is read whole
from about half of them on). On CUDA (theirs: a kernel) small gates are zeroed and nothing is skipped, for how many
neurons a token has is not known without waiting for the device.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import torch

from coremat.ffn.per_token import PerTokenFFN, check_resident, nonzero_gates
from coremat.methods.calibrated import Calibrated, LayerSample
from coremat.methods.common.quantiles import at_share, reached, thresholds, without_small
from coremat.methods.corematching.core_neurons import core_count
from coremat.methods.layer_shares import LayerShares
from coremat.methods.options import Share
from coremat.methods.reads import Reads
from coremat.models.shape import DecoderShape


@dataclass(frozen=True, kw_only=True)
class Cats(LayerShares, Calibrated):
    """beta: share of the neurons kept on the calibration's tokens (the authors': 0.5), to a thousandth."""

    name: ClassVar[str] = "cats"
    summary: ClassVar[str] = "CATS: each token's neurons with a large gate, by a calibrated threshold for each layer"
    paper: ClassVar[str] = "Lee et al., COLM 2024 (arXiv 2404.08763)"
    departures: ClassVar[str] = (
        "calibrated on answers to images; at the default beta, in 16 bits on one CPU thread, no faster than dense; on "
        "CUDA small gates are zeroed, not skipped"
    )

    beta: Share = 0.5

    def calibrate_layer(self, layer: LayerSample) -> Mapping[str, torch.Tensor]:
        table = thresholds(layer.gate(False).abs())
        return {"thresholds": table, "reached": reached(layer.gate(True).abs(), table)}

    def figures(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return {
            "threshold": at_share(tensors["thresholds"], self.beta),
            "share reached": at_share(tensors["reached"], self.beta),
        }

    def neuron_count(self, size: int) -> int:
        return core_count(size, self.beta)

    def reads(self, layer: int, shape: DecoderShape) -> Reads:
        """The whole gate, and the neurons' share of up and down."""
        share = Fraction(self.neuron_count(shape.ffn), shape.ffn)
        return Reads(up_proj=share, down_proj=share)

    def decode_ffn(self, number: int, mlp: Any, state: Mapping[str, torch.Tensor]) -> "LargeGatesFFN":
        weight = mlp.gate_proj.weight
        threshold = at_share(state["thresholds"][number], self.beta).to(weight.device)
        return LargeGatesFFN(mlp, self.neuron_count(len(weight)), threshold)


class LargeGatesFFN(PerTokenFFN):
    """An FFN of the neurons whose |act(gate x)| reaches the threshold."""

    def __init__(self, mlp: Any, count: int, threshold: torch.Tensor) -> None:
        check_resident(mlp, Cats.name)
        super().__init__(mlp, count)
        self._threshold = threshold

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(0, -2)
        gates = self.mlp.act_fn(self.mlp.gate_proj(tokens))
        return nonzero_gates(tokens, without_small(gates, self._threshold), self.mlp).view(*x.shape[:-1], -1)
