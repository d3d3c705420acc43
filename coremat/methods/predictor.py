"""A trained predictor of each token's neurons, as Deja Vu and PowerInfer have.

Liu et al., "Deja Vu: Contextual Sparsity for Efficient LLMs at Inference Time", ICML 2023 (arXiv 2310.17157); Song, Mi,
Xie and Chen, "PowerInfer", SOSP 2024 (arXiv 2312.12456): for each layer two matrices with a ReLU between, of a low
rank, say from a hidden state h which neurons it activates: W2 relu(W1 h). Trained by binary cross-entropy on pairs of
hidden states and active neurons.

Departures: both papers are about ReLU models, where an active neuron is one that is not zero; here the active neurons
of a token are its `beta` largest |A|, whatever the activation function, and as many are predicted. h is what the FFN
reads, behind its norm. A missed neuron weighs (1 - beta) / beta times as much as a false one, so that both kinds weigh
the same in sum. One rank for all layers. Rows of gate, up and down of neurons that were not predicted are not read on a
CPU, and on CUDA with Triton, of a step whose tokens together want fewer than there are (a batch soon wants more; on a
CPU gate and up, of 16 bits, are read whole from about half of them on).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional

from coremat.ffn.per_token import PerTokenFFN, check_resident, chosen_outputs, gated_neurons, strongest
from coremat.methods.calibrated import Calibrated, LayerSample
from coremat.methods.common.random import generator
from coremat.methods.corematching.core_neurons import core_count
from coremat.methods.layer_shares import LayerShares
from coremat.methods.options import Count, Seed, Share
from coremat.methods.reads import Reads
from coremat.models.shape import DecoderShape

STEPS, BATCH, RATE = 600, 128, 3e-3  # of the training of one layer: Adam, the rate falling to 0


@dataclass(frozen=True, kw_only=True)
class TrainedPredictor(LayerShares, Calibrated):
    """beta: share of the neurons that each token uses while decoding. rank: of the two matrices (the authors': about
    a tenth of the hidden size and more). fit_seed: of the training. All of them belong to the calibration."""

    name: ClassVar[str] = "predictor"
    summary: ClassVar[str] = "each token's neurons by a trained predictor of low rank, as Deja Vu and PowerInfer have"
    paper: ClassVar[str] = "Liu et al., ICML 2023 (arXiv 2310.17157); Song et al., SOSP 2024 (arXiv 2312.12456)"
    departures: ClassVar[str] = "the largest |A| are the active neurons, and as many are predicted; one rank"
    calibrated_for: ClassVar[tuple[str, ...]] = ("beta", "rank", "fit_seed")

    beta: Share = 0.4
    rank: Count = 128
    fit_seed: Seed = 0

    def calibrate_layer(self, layer: LayerSample) -> Mapping[str, torch.Tensor]:
        known, judged = layer.activations(False).abs(), layer.activations(True).abs()
        count = self.neuron_count(known.shape[-1])
        active = most_likely(known, count)
        inner, outer = trained(layer.ffn_input(False), active, self.rank, self.fit_seed, layer.number)
        found = most_likely(scores(layer.ffn_input(True), inner, outer), count)
        always = most_likely(active.float().sum(0, keepdim=True), count).expand_as(found)
        return {
            "inner": inner,
            "outer": outer,
            "recall": recall(found, most_likely(judged, count)),
            "recall of the most frequent": recall(always, most_likely(judged, count)),
        }

    def neuron_count(self, size: int) -> int:
        return core_count(size, self.beta)

    def reads(self, layer: int, shape: DecoderShape) -> Reads:
        """The neurons, and both matrices of the predictor."""
        own = self.rank * (shape.hidden + shape.ffn)
        return Reads.of_neurons(self.neuron_count(shape.ffn), shape.ffn, extra=own)

    def decode_ffn(self, number: int, mlp: Any, state: Mapping[str, torch.Tensor]) -> "PredictedNeuronsFFN":
        weight = mlp.gate_proj.weight
        inner, outer = (state[name][number].to(weight.device, weight.dtype) for name in ("inner", "outer"))
        return PredictedNeuronsFFN(mlp, self.neuron_count(len(weight)), inner, outer)


class PredictedNeuronsFFN(PerTokenFFN):
    """An FFN of the `count` neurons that the two matrices find likeliest."""

    def __init__(self, mlp: Any, count: int, inner: torch.Tensor, outer: torch.Tensor) -> None:
        check_resident(mlp, TrainedPredictor.name)
        super().__init__(mlp, count)
        self._inner, self._outer = inner, outer

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(0, -2)
        index = strongest(scores(tokens, self._inner, self._outer), self.count)
        gates = self.mlp.act_fn(chosen_outputs(tokens, index, self.mlp.gate_proj))
        return gated_neurons(tokens, gates, index, self.mlp).view(*x.shape[:-1], -1)

    @property
    def bytes(self) -> int:
        return self._inner.nbytes + self._outer.nbytes


def scores(x: torch.Tensor, inner: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
    """W2 relu(W1 x). x: [..., H]; inner: W1 [r, H]; outer: W2 [F, r]. Returns [..., F]."""
    return functional.linear(functional.linear(x, inner).relu(), outer)


def most_likely(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` neurons of each token with the largest scores, ties to the lower index: bool [..., F]."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, strongest(scores, count), True)


def recall(found: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """The share of the active neurons that were found, over all tokens. found, active: bool [n, F]. As many are found
    as are active, so it is the precision too."""
    return (found & active).sum() / active.sum()


def trained(x: torch.Tensor, active: torch.Tensor, rank: int, *seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """W1 [rank, H] and W2 [F, rank], float32, that tell from x [n, H] which neurons are active, bool [n, F].

    The same for the same seed, on one device. Inputs are divided by their spreads, which then go into W1.
    """
    draw, spread = generator(*seed), x.square().mean(0).sqrt().clamp(min=1e-6)
    inner, outer = (
        (torch.randn(rows, columns, generator=draw) * columns**-0.5).to(x.device).requires_grad_()
        for rows, columns in ((rank, x.shape[1]), (active.shape[1], rank))
    )
    ratio = float((~active).sum() / active.sum().clamp(min=1))
    weight = torch.full((), max(ratio, 1e-3), device=x.device)
    with torch.enable_grad():
        optimizer = torch.optim.Adam((inner, outer), lr=RATE)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
        for _ in range(STEPS):
            rows = torch.randint(len(x), (BATCH,), generator=draw).to(x.device)
            logits = scores(x[rows] / spread, inner, outer)
            loss = functional.binary_cross_entropy_with_logits(logits, active[rows].float(), pos_weight=weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return (inner / spread).detach(), outer.detach()
