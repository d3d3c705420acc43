"""Budgets of neurons layer by layer: the mean over the layers is the method's own share, layers may differ from it.

    @dataclass(frozen=True, kw_only=True)
    class Mine(LayerShares):
        beta: Share = 0.4

A method stays written for one share. `of_layer` gives the method with the share of one layer, and whoever has a
question about a layer's neurons asks that one. What pruning each layer costs is measured by `coremat calibrate METHOD
--layer-shares` (`coremat.runtime.layer_costs`); one file serves every mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

from coremat.errors import ConfigError
from coremat.methods.base import Method
from coremat.methods.budget import as_fraction
from coremat.methods.calibration_file import MADE_BY, Calibration, check_made_for, file_digest, with_file
from coremat.methods.common.division import by_costs, first_whole
from coremat.methods.options import Kind

EVEN, FIRST_DENSE = "even", "first-dense"
WORDS = (EVEN, FIRST_DENSE)
ACCEPTED = f"even, first-dense, a file of {MADE_BY} --layer-shares"
ByLayer = Annotated[str, Kind(ACCEPTED, str, lambda value: isinstance(value, str) and bool(value))]


@dataclass(frozen=True, kw_only=True)
class LayerShares(Method):
    """layer_shares: how the method's share is divided among the layers: "even", "first-dense" (layer 0 whole, the
    others less, the sum the same), or the file of `coremat calibrate METHOD --layer-shares`."""

    share_options: ClassVar[tuple[str, ...]] = ("beta",)
    """The option that is the share; any others behind it change in proportion."""

    layer_shares: ByLayer = EVEN

    @property
    def share(self) -> Fraction:
        """The mean over the layers."""
        return as_fraction(getattr(self, self.share_options[0]))

    def at_share(self, share: Fraction) -> "LayerShares":
        """The same method with this share in every layer."""
        own = {name: share * as_fraction(getattr(self, name)) / self.share for name in self.share_options}
        return replace(self, layer_shares=EVEN, **{name: float(value) for name, value in own.items()})

    def of_layer(self, number: int, layers: int) -> Method:
        if self.layer_shares == EVEN:
            return self
        return _by_layer(self, layers, None if self._file is None else file_digest(self._file, ACCEPTED))[number]

    @property
    def _file(self) -> Path | None:
        return None if self.layer_shares in WORDS else Path(self.layer_shares)

    def costs_made_with(self) -> dict[str, Any]:
        """What a file of layer shares is told by."""
        return {"name": f"the layers of {self.label}", "options": {}}

    def setup(self, model: Any) -> Any:
        """Of the class behind this one, after the file is held to the model. ConfigError for that of something else."""
        if self._file is not None:
            check_made_for(str(self._file), read_costs(self._file).about, self.costs_made_with(), model)
        return super().setup(model)

    def identity(self) -> dict[str, Any]:
        own = super().identity()
        return own if self._file is None else with_file(own, "layer_shares", self._file, ACCEPTED)


def read_costs(path: Path) -> Calibration:
    """ConfigError for what is no file of layer shares."""
    found = Calibration.read(path, ACCEPTED)
    if not {"costs", "grid"} <= found.tensors.keys():
        raise ConfigError(f"{str(path)!r} is a calibration of {found.about['method']}; accepted: {ACCEPTED}.")
    return found


def shares_of(method: LayerShares, layers: int) -> list[Fraction]:
    """The share of each layer; their mean is the method's. ConfigError for a mean that cannot be divided so, and for a
    file that is none or was made for another number of layers."""
    if method.layer_shares == EVEN:
        return [method.share] * layers
    if method.layer_shares == FIRST_DENSE:
        return first_whole(method.share, layers)
    found = read_costs(Path(method.layer_shares))
    if len(found.tensors["costs"]) != layers:
        raise ConfigError(
            f"{method.layer_shares!r} was made for {len(found.tensors['costs'])} layers, and this model has {layers}; "
            "accepted: the same."
        )
    return divided(found, method.share)


def divided(costs: Calibration, mean: Fraction) -> list[Fraction]:
    """The shares of this mean by measured costs."""
    grid = [as_fraction(share) for share in costs.tensors["grid"].tolist()]
    return by_costs(costs.tensors["costs"].tolist(), grid, mean)


@lru_cache(maxsize=64)
def _by_layer(method: LayerShares, layers: int, digest: str | None) -> Sequence[LayerShares]:
    """The method of each layer. digest: of the file, which may be written anew under its name."""
    return [method.at_share(share) for share in shares_of(method, layers)]
