"""Token and neuron pruning for Hugging Face vision-language models, measured (CoreMatching, ICML 2025, and its rivals).

with coremat.apply(model, "corematching") as session:
    output = model.generate(**inputs)
    print(session.stats)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coremat.methods.base import Method, Reduction, Stage
    from coremat.runtime.session import Session, apply
    from coremat.runtime.stats import SequenceStats

__version__ = "0.1.0"
__all__ = ["Method", "Reduction", "SequenceStats", "Session", "Stage", "__version__", "apply"]

_PLACES = {
    "Method": "coremat.methods.base",
    "Reduction": "coremat.methods.base",
    "SequenceStats": "coremat.runtime.stats",
    "Session": "coremat.runtime.session",
    "Stage": "coremat.methods.base",
    "apply": "coremat.runtime.session",
}


def __getattr__(name: str) -> Any:
    """All of these need torch and transformers; a program that only reads records does not wait for them."""
    if name not in _PLACES:
        raise AttributeError(f"module 'coremat' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
