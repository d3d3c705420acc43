"""CoreMatching for Hugging Face vision-language models: token and neuron sparsity, measured.

with coremat.apply(model, coremat.SparsityConfig()) as session:
    output = model.generate(**inputs)
    print(session.stats)
"""

from typing import TYPE_CHECKING, Any

from coremat.config import SparsityConfig

if TYPE_CHECKING:
    from coremat.patch import Session, apply
    from coremat.prompt import SequenceStats

__version__ = "0.1.0"
__all__ = ["SequenceStats", "Session", "SparsityConfig", "__version__", "apply"]


def __getattr__(name: str) -> Any:
    """`apply` and its types need torch and transformers; a program that only reads records does not wait for them."""
    if name in ("apply", "Session"):
        from coremat import patch

        return getattr(patch, name)
    if name == "SequenceStats":
        from coremat.prompt import SequenceStats

        return SequenceStats
    raise AttributeError(f"module 'coremat' has no attribute {name!r}")
