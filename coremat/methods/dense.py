"""The unchanged model, under the same measurements as every method."""

from dataclasses import dataclass
from typing import ClassVar

from coremat.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class Dense(Method):
    name: ClassVar[str] = "dense"
    summary: ClassVar[str] = "the unchanged model"
