"""TEAL: small inputs of every Linear count as zero, by a calibrated threshold for each.

Liu et al., "Training-Free Activation Sparsity in Large Language Models", ICLR 2025 (arXiv 2408.14690): an input x of a
matrix is left out where |x| < t, with t a quantile of calibration data, and its column of the matrix is not read. q, k
and v have one input, gate and up another, o and down one each. `uniform`: every matrix keeps the same share. `greedy`:
within a block, the share of one matrix after another is lowered by a step, each time where that moves the block's
output least.

Departures: quantiles of |x| as they are (theirs: of a histogram taken to be even around zero), at tokens of answers;
inputs are left out while decoding only (their evaluation: also in the second half of a prompt). Greedy is within the
FFN, by its output on held-out prompts; the attention keeps the uniform share, for what its matrices change shows in
later tokens only. Columns of inputs that are left out are not read on a CPU, of a step whose tokens together want fewer
than there are (a batch soon wants more). On CUDA (theirs: a kernel) these inputs are zeroed and nothing is skipped, for
how many a token has is not known without waiting for the device.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from coremat.ffn.per_token import nonzero_inputs
from coremat.methods.base import Forward
from coremat.methods.budget import as_fraction
from coremat.methods.calibrated import Calibrated, LayerSample
from coremat.methods.common.quantiles import at_share, thresholds, without_small
from coremat.methods.layer_shares import LayerShares
from coremat.methods.options import Share
from coremat.methods.reads import Reads
from coremat.models.shape import FFN, DecoderShape

SOURCES = ("q_proj", "o_proj", "gate_proj", "down_proj")  # matrices whose inputs are looked at
SAME_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
STEPS = 20  # of one matrix, from all of its inputs to none
JUDGED = 512  # tokens on which an FFN's output is compared


@dataclass(frozen=True, kw_only=True)
class Teal(LayerShares, Calibrated):
    """beta: share of the inputs kept on the calibration's tokens, to a thousandth (greedy: of an FFN's three matrices
    together, to a sixtieth). allocation: "uniform", or "greedy" within each FFN."""

    name: ClassVar[str] = "teal"
    summary: ClassVar[str] = "TEAL: small inputs of every Linear count as zero, by calibrated thresholds"
    paper: ClassVar[str] = "Liu et al., ICLR 2025 (arXiv 2408.14690)"
    departures: ClassVar[str] = (
        "calibrated on answers to images; while decoding only; greedy within the FFN; on CUDA inputs are zeroed, not "
        "skipped"
    )
    input_major: ClassVar[bool] = True
    sampled: ClassVar[tuple[str, ...]] = SOURCES

    beta: Share = 0.5
    allocation: Literal["uniform", "greedy"] = "uniform"

    def calibrate_layer(self, layer: LayerSample) -> Mapping[str, torch.Tensor]:
        known = {name: values[~layer.held_out.to(values.device)] for name, values in layer.inputs.items()}
        tables = {name: thresholds(values.abs()) for name, values in known.items()}
        judged = layer.inputs["gate_proj"][layer.held_out.to(known["gate_proj"].device)][:JUDGED]
        path, errors = greedy_path(layer.mlp, judged, {name: tables[SAME_INPUT.get(name, name)] for name in FFN})
        return {"thresholds": torch.stack([tables[name] for name in SOURCES]), "path": path, "errors": errors}

    def figures(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The greedy choice at this share, whatever the allocation, and the FFN's error with it."""
        step = _step(self.beta)
        shares = {f"{name} (greedy)": tensors["path"][:, step, number] for number, name in enumerate(FFN)}
        return {**shares, "FFN error (greedy)": tensors["errors"][:, step]}

    def linear(self, layer: int, name: str, linear: nn.Linear, state: Mapping[str, torch.Tensor]) -> Forward:
        table = state["thresholds"][layer, SOURCES.index(SAME_INPUT.get(name, name))]
        threshold = at_share(table, self._share(layer, name, state)).to(linear.weight.device)

        def forward(x: torch.Tensor) -> torch.Tensor:
            tokens = without_small(x.reshape(-1, x.shape[-1]), threshold)
            return nonzero_inputs(tokens, linear).view(*x.shape[:-1], -1)

        return forward

    def _share(self, layer: int, name: str, state: Mapping[str, torch.Tensor]) -> float:
        if self.allocation == "uniform" or name not in FFN:
            return self.beta
        return float(state["path"][layer, _step(self.beta), FFN.index(name)])

    def reads(self, layer: int, shape: DecoderShape) -> Reads:
        """The share of each matrix; a greedy choice divides the same sum otherwise among those of the FFN."""
        part = as_fraction(self.beta)
        return Reads(q_proj=part, k_proj=part, v_proj=part, o_proj=part, gate_proj=part, up_proj=part, down_proj=part)


def greedy_path(mlp: Any, x: torch.Tensor, tables: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """How the inputs of an FFN's matrices are given up, a twentieth of one matrix at a time, each time of the matrix
    that changes the output least (the first of equal ones).

    x: [n, H], what the FFN reads; tables: the thresholds of each matrix by share. Returns the shares of gate, up and
    down after each step, float32 [1 + 3 * (20 - 1), 3], from 1 to a twentieth; and the output's relative error (squared
    norm over squared norm) with them, float32 [the same].
    """
    left, dense = [STEPS] * len(FFN), _output(mlp, x, {})
    path, errors = [list(left)], [0.0]
    while any(part > 1 for part in left):
        tried = {}
        for number, part in enumerate(left):
            if part > 1:
                fewer = [*left[:number], part - 1, *left[number + 1 :]]
                tried[number] = _error(mlp, x, dense, _cuts(fewer, tables))
        best = min(tried, key=tried.__getitem__)
        left[best] -= 1
        path.append(list(left))
        errors.append(tried[best])
    return torch.tensor(path) / STEPS, torch.tensor(errors)


def _step(share: float) -> int:
    """The step of a path after which this share of all inputs is left."""
    return min(round((1 - share) * STEPS * len(FFN)), len(FFN) * (STEPS - 1))


def _cuts(left: list[int], tables: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: at_share(tables[name], part / STEPS) for name, part in zip(FFN, left, strict=True)}


def _error(mlp: Any, x: torch.Tensor, dense: torch.Tensor, cuts: Mapping[str, torch.Tensor]) -> float:
    return float((_output(mlp, x, cuts) - dense).float().square().sum() / dense.float().square().sum())


def _output(mlp: Any, x: torch.Tensor, cuts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The FFN's output, with inputs of its matrices below their thresholds left out."""
    gate, up = (without_small(x, cuts[name].to(x.device)) if cuts else x for name in ("gate_proj", "up_proj"))
    active = mlp.act_fn(mlp.gate_proj(gate)) * mlp.up_proj(up)
    return mlp.down_proj(without_small(active, cuts["down_proj"].to(x.device)) if cuts else active)
