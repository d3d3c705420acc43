"""Two levels of choice: candidates among the neurons for the whole answer, and among these the best for each token.

A method of coremat's own. Candidates are chosen once per prompt, as core neurons are, by the energy of their
activations or by GRIFFIN's score; their gates are computed at every token, and of them the neurons with the largest
|act(gate)| get their rows of `up_proj` and their columns of `down_proj`. With a share c of candidates and k for each
token a decode step reads c / 3 + 2 k / 3 of an FFN. That |act(gate)| tells which activations are large is CATS (Lee et
al., 2024, arXiv 2404.08763), where every gate is computed and a threshold decides.

That is what is read on a CPU, and on CUDA with Triton, by a step whose tokens together want fewer rows than there are
(a batch soon wants more); otherwise up and down are read whole, and the other neurons are zeros.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch

from coremat.errors import ConfigError
from coremat.ffn.per_token import check_resident, gated_neurons, strongest
from coremat.ffn.rows import copy_rows, times_rows
from coremat.ffn.workspace import Workspace
from coremat.methods.common.energy import column_norms, energy, largest
from coremat.methods.corematching.core_neurons import core_count
from coremat.methods.energy_neurons import all_but_first
from coremat.methods.layer_shares import LayerShares
from coremat.methods.options import Share
from coremat.methods.reads import Reads
from coremat.methods.views import LayerView
from coremat.models.shape import DecoderShape
from coremat.timers import Stopwatch


@dataclass(frozen=True, kw_only=True)
class TwoLevel(LayerShares):
    """candidates: share of the neurons that are chosen for the answer. by: the "energy" of neurons (the sum of squared
    activations over the prompt, without its first token) or "griffin" (of activations that are normalised per token).
    beta: share of the neurons, of all of the FFN's, that each token uses. weighted: |act(gate)| is multiplied by the l2
    norm of the neuron's column of `down_proj`."""

    name: ClassVar[str] = "two-level"
    summary: ClassVar[str] = "candidates for the answer by their activations over the prompt, of them each token's best"
    paper: ClassVar[str] = "coremat's own; |act(gate)| as in CATS (Lee et al., 2024, arXiv 2404.08763)"

    share_options: ClassVar[tuple[str, ...]] = ("candidates", "beta")

    candidates: Share = 0.6
    beta: Share = 0.2
    by: Literal["energy", "griffin"] = "energy"
    weighted: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta > self.candidates:
            raise ConfigError(f"beta is {self.beta!r}; accepted: up to {self.candidates!r}, the share of candidates.")

    def neurons(self, layer: LayerView) -> torch.Tensor:
        griffin = self.by == "griffin"
        voters = layer.valid if griffin else all_but_first(layer.valid)
        scores = energy(layer.activations, voters, normalised=griffin)
        return largest(scores, self.neuron_count(scores.shape[-1]))

    def neuron_count(self, size: int) -> int:
        return core_count(size, self.candidates)

    def decode_ffn(self, number: int, mlp: Any, state: Any) -> "TwoLevelFFN":
        return TwoLevelFFN(mlp, core_count(mlp.gate_proj.weight.shape[0], self.beta), self.weighted)

    def reads(self, layer: int, shape: DecoderShape) -> Reads:
        """The gates of the candidates, and the rest of the neurons that a token uses."""
        used = Fraction(core_count(shape.ffn, self.beta), shape.ffn)
        gates = Fraction(self.neuron_count(shape.ffn), shape.ffn)
        return Reads(gate_proj=gates, up_proj=used, down_proj=used)


class TwoLevelFFN:
    """One layer's FFN (`coremat.ffn.SparseFFN`): the gates of the candidates are copied once per prompt, other rows and
    columns are read where they lie, of every token its own. Where the tokens of a step want more of a matrix together
    than there is, the whole matrix is read."""

    def __init__(self, mlp: Any, count: int, weighted: bool) -> None:
        check_resident(mlp, TwoLevel.name)
        self.mlp, self.count, self.weighted = mlp, count, weighted
        self._workspace = Workspace()
        self._copied = False

    def prepare(self, core: torch.Tensor, watch: Stopwatch) -> None:
        self._core, self._watch, self._copied = self._workspace.keep("core", core), watch, False

    def materialise(self) -> None:
        if self._copied or not self._copies:
            return
        gate, core = self.mlp.gate_proj.weight, self._core
        with self._watch.running(), torch.no_grad():
            self._gates = self._workspace.room("gates", gate, *core.shape, gate.shape[1])
            copy_rows(gate, core, self._gates)
        self._copied = True

    @property
    def _copies(self) -> bool:
        """Not where the sets of all sequences together are as large as the FFN."""
        return self._core.numel() < len(self.mlp.gate_proj.weight)

    @cached_property
    def _norms(self) -> torch.Tensor:
        """Made at the first token; the weights of a sparse model do not change."""
        return column_norms(self.mlp.down_proj.weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.materialise()
        tokens, core = x.flatten(0, 1), self._core[:, None].expand(*x.shape[:2], -1).flatten(0, 1)
        gates = self.mlp.act_fn(self._candidates(x)).flatten(0, 1)
        size = gates.float().abs()
        best = strongest(size * self._norms[core] if self.weighted else size, self.count)
        index = core.gather(1, best)
        return gated_neurons(tokens, gates.gather(1, best), index, self.mlp).view(*x.shape[:2], -1)

    def _candidates(self, x: torch.Tensor) -> torch.Tensor:
        """What the gate gives for the candidates, [B, q, c]."""
        gate, core = self.mlp.gate_proj, self._core[:, None]
        if not self._copied:
            return gate(x).gather(-1, core.expand(*x.shape[:2], -1))
        found = times_rows(x, self._gates)
        return found if gate.bias is None else found + gate.bias[core].to(found.dtype)

    @property
    def bytes(self) -> int:
        return self._workspace.bytes
