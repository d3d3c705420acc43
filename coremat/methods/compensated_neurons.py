"""Neurons by their energy in the prompt and in answers seen before; what the others add on average stays.

A method of coremat's own. It adds three things that votes by sign leave out: large negative activations count as much
as large positive ones (the energy of GRIFFIN, normalised per token); a prompt tells only a part of what its answer will
activate, and answers to other prompts tell another part; a neuron that is left out adds something on average, which is
a vector for each layer and costs nothing to read. That last idea is the bias compensation of FLAP (An et al., AAAI
2024, arXiv 2312.11983), which prunes a model once for all prompts. The first layer, which bears no pruning in a
pretrained language model (`results/reference/README.md`), is whole by default.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional

from coremat.ffn import SparseFFN, make_ffn
from coremat.ffn.workspace import Workspace
from coremat.methods.calibrated import Calibrated, LayerSample
from coremat.methods.common.energy import energy, largest
from coremat.methods.corematching.core_neurons import core_count
from coremat.methods.energy_neurons import all_but_first
from coremat.methods.layer_shares import FIRST_DENSE, ByLayer, LayerShares
from coremat.methods.options import Share
from coremat.methods.views import LayerView
from coremat.tensors import membership
from coremat.timers import Stopwatch


@dataclass(frozen=True, kw_only=True)
class CompensatedNeurons(LayerShares, Calibrated):
    """beta: share of neurons kept, a set for each sequence. compensate: add what the calibration's answers have from
    the neurons that are left out, on average."""

    name: ClassVar[str] = "compensated-neurons"
    summary: ClassVar[str] = "neurons by their energy in prompt and calibration; the mean of the others stays"
    paper: ClassVar[str] = "coremat's own; the mean as in FLAP (An et al., AAAI 2024, arXiv 2312.11983)"

    beta: Share = 0.4
    compensate: bool = True
    layer_shares: ByLayer = FIRST_DENSE

    def calibrate_layer(self, layer: LayerSample) -> Mapping[str, torch.Tensor]:
        """mean and energy (of normalised tokens): [F]. fixed: the share of the activations' energy that lies in their
        mean, on answers that are held out: what compensation gives back of neurons that are left out."""
        known, judged = layer.activations(False), layer.activations(True)
        mean = known.mean(0)
        fixed = 1 - (judged - mean).square().sum() / judged.square().sum()
        return {"mean": mean, "energy": functional.normalize(known, dim=-1).square().mean(0), "fixed": fixed}

    def neurons(self, layer: LayerView) -> torch.Tensor:
        voters = all_but_first(layer.valid)
        own = energy(layer.activations, voters, normalised=True) / voters.sum(1, keepdim=True).clamp(min=1)
        seen = layer.state["energy"][layer.number].to(own.device)
        return largest(own + seen, self.neuron_count(own.shape[-1]))

    def neuron_count(self, size: int) -> int:
        return core_count(size, self.beta)

    def decode_ffn(self, number: int, mlp: Any, state: Mapping[str, torch.Tensor]) -> SparseFFN:
        chosen = make_ffn(mlp, "auto")
        if not self.compensate:
            return chosen
        return CompensatedFFN(mlp, chosen, state["mean"][number].to(mlp.down_proj.weight.device))


class CompensatedFFN:
    """One layer's FFN (`coremat.ffn.SparseFFN`): `chosen` on the chosen neurons, and a vector [B, 1, H] for the others,
    their mean activations times their columns of `down_proj`. mean: float32 [F]."""

    def __init__(self, mlp: Any, chosen: SparseFFN, mean: torch.Tensor) -> None:
        self.mlp, self._chosen, self._mean = mlp, chosen, mean
        self._workspace = Workspace()

    def prepare(self, core: torch.Tensor, watch: Stopwatch) -> None:
        weight = self.mlp.down_proj.weight
        with watch.running(), torch.no_grad():
            others = self._mean.masked_fill(membership(core, len(self._mean)), 0).to(weight.dtype)
            self._rest = self._workspace.keep("rest", functional.linear(others, weight)[:, None])
        self._chosen.prepare(core, watch)

    def materialise(self) -> None:
        self._chosen.materialise()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._chosen(x) + self._rest

    @property
    def bytes(self) -> int:
        return self._chosen.bytes + self._workspace.bytes
