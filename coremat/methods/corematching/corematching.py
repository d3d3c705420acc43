"""CoreMatching: core tokens and core neurons together (Wang et al., ICML 2025).

One count of votes in layer `prune_layer` - 1 gives both: its core neurons, and, by them, the core tokens.

Departures: none from the paper's text where it is unambiguous; `docs` of every choice that it leaves open are the
options of `core_tokens` and `core_neurons`. The authors' released code is another algorithm: `corematching-released`.
"""

from dataclasses import dataclass
from typing import ClassVar

from coremat.methods.corematching.core_neurons import CoreNeurons
from coremat.methods.corematching.core_tokens import CoreTokens


@dataclass(frozen=True, kw_only=True)
class CoreMatching(CoreTokens, CoreNeurons):
    """The options of both."""

    name: ClassVar[str] = "corematching"
    summary: ClassVar[str] = "core tokens and core neurons (the paper)"
    paper: ClassVar[str] = "CoreMatching: A Co-adaptive Sparse Inference Framework (ICML 2025)"
