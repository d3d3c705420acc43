"""WINA: each token uses the inputs of a Linear that are large in its output, by their size and that of their column.

Chen et al., "WINA: Weight Informed Neuron Activation for Accelerating Large Language Model Inference", 2025 (arXiv
2505.19427). In every Linear of a decoder layer the inputs with the largest |x_i| * ||W[:, i]||_2 stay, a fixed share
per token; the other inputs are taken to be zero, so that their columns need not be read. Nothing is trained or
calibrated.

Columns that are not wanted are not read at all on a CPU, and on CUDA with Triton, of a step whose tokens together want
fewer than there are (a batch soon wants more); otherwise the matrix is read whole, and the other inputs are zeros.

Departures: the weights are used as they are, not turned beforehand so that columns are orthogonal; one share for all
matrices of a layer, and for all layers unless `layer_shares` says otherwise (theirs: by a greedy search); the prompt
runs dense.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from coremat.ffn.per_token import chosen_inputs, strongest
from coremat.methods.base import Forward
from coremat.methods.common.energy import column_norms
from coremat.methods.corematching.core_neurons import core_count
from coremat.methods.layer_shares import LayerShares
from coremat.methods.options import Share
from coremat.methods.reads import Reads
from coremat.models.shape import FFN, LINEARS, DecoderShape


@dataclass(frozen=True, kw_only=True)
class Wina(LayerShares):
    """keep: share of the inputs of each matrix that a token uses while decoding. matrices: "all" seven of a layer, or
    those of the "ffn" alone. weighted: by the l2 norms of the columns, too (the paper); else by the inputs alone."""

    name: ClassVar[str] = "wina"
    summary: ClassVar[str] = "WINA: each token's inputs of every Linear with the largest |x| times norm of their column"
    paper: ClassVar[str] = "Chen et al., 2025 (arXiv 2505.19427)"
    departures: ClassVar[str] = (
        "weights are not made orthogonal; one share for a layer's matrices; the prompt runs dense"
    )
    input_major: ClassVar[bool] = True
    share_options: ClassVar[tuple[str, ...]] = ("keep",)

    keep: Share = 0.5
    matrices: Literal["all", "ffn"] = "all"
    weighted: bool = True

    def linear(self, layer: int, name: str, linear: nn.Linear, state: Any) -> Forward | None:
        if name not in self._names or self.keep == 1:
            return None
        return StrongestInputs(linear, core_count(linear.in_features, self.keep), self.weighted)

    def reads(self, layer: int, shape: DecoderShape) -> Reads:
        sizes = {name: shape.inputs(name) for name in self._names}
        return Reads.of_inputs({name: Fraction(core_count(size, self.keep), size) for name, size in sizes.items()})

    @property
    def _names(self) -> tuple[str, ...]:
        return LINEARS if self.matrices == "all" else FFN


class StrongestInputs:
    """A Linear of each token's `count` strongest inputs."""

    def __init__(self, linear: nn.Linear, count: int, weighted: bool) -> None:
        self.linear, self.count, self.weighted = linear, count, weighted

    @cached_property
    def _norms(self) -> torch.Tensor:
        """Made at the first token; the weights of a sparse model do not change."""
        return column_norms(self.linear.weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        size = tokens.float().abs()
        index = strongest(size * self._norms if self.weighted else size, self.count)
        return chosen_inputs(tokens.gather(1, index), index, self.linear).view(*x.shape[:-1], -1)
