"""The two kinds of file that `coremat calibrate` makes: what each is made of, how, and what is printed of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from coremat.errors import ConfigError
from coremat.methods.registry import parse

if TYPE_CHECKING:
    from coremat.methods.base import Method
    from coremat.methods.calibration_file import Calibration

Batches = Iterator[Mapping[str, Any]]


class Made(Protocol):
    """spec: the method, as typed; option: of it, that takes the file."""

    spec: str
    option: str

    def check(self, model: Any) -> None:
        """Before a prompt is read: UnsupportedError or ConfigError for a model that it cannot be made on."""

    def units(self, layers: int, batches: int) -> int:
        """How often `make` calls `on_layer`."""

    def make(self, model: Any, batches: Batches, on_layer: Callable[[], object]) -> "Calibration":
        """The file's content."""

    def figures(self, found: "Calibration") -> Mapping[str, Sequence[float]]:
        """What is printed of it: a number for each layer, by what it is."""


class Fit:
    """The calibration of a method."""

    option = "calibration"

    def __init__(self, spec: str, new_tokens: int, tokens: int, seed: int) -> None:
        from coremat.runtime.calibration import calibrated_part

        self.method, self.spec = calibrated_part(parse(spec)), spec
        self._options = {"new_tokens": new_tokens, "tokens": tokens, "seed": seed}
        _check_free(spec, self.method, self.option, None)

    def check(self, model: Any) -> None:
        from coremat.runtime.calibration import check_calibration

        check_calibration(model, self.method)

    def units(self, layers: int, batches: int) -> int:
        return layers

    def make(self, model: Any, batches: Batches, on_layer: Callable[[], object]) -> "Calibration":
        from coremat.runtime.calibration import calibrate

        return calibrate(model, self.method, batches, on_layer=on_layer, **self._options)

    def figures(self, found: "Calibration") -> Mapping[str, Sequence[float]]:
        return {name: values.tolist() for name, values in self.method.figures(found.tensors).items()}


class Costs:
    """What pruning each layer costs; printed beside the shares that follow at the method's own mean."""

    option = "layer_shares"

    def __init__(self, spec: str, shares: str, new_tokens: int) -> None:
        from coremat.methods.layer_shares import EVEN
        from coremat.runtime.layer_costs import check_grid, divided_part

        self.method, self.spec, self._new_tokens = divided_part(parse(spec)), spec, new_tokens
        _check_free(spec, self.method, self.option, EVEN)
        self._grid = _numbers(shares)
        check_grid(self._grid)

    def check(self, model: Any) -> None:
        from coremat.runtime.session import check

        check(model, self.method)

    def units(self, layers: int, batches: int) -> int:
        return layers * batches

    def make(self, model: Any, batches: Batches, on_layer: Callable[[], object]) -> "Calibration":
        from coremat.runtime.layer_costs import layer_costs

        return layer_costs(model, self.method, batches, self._grid, self._new_tokens, on_layer)

    def figures(self, found: "Calibration") -> Mapping[str, Sequence[float]]:
        from coremat.methods.layer_shares import divided

        costs = zip(found.tensors["grid"].tolist(), found.tensors["costs"].T.tolist(), strict=True)
        mean = f"share, in the mean {float(self.method.share):g}"
        own = [float(share) for share in divided(found, self.method.share)]
        return {**{f"KL at {share:g}": values for share, values in costs}, mean: own}


def _check_free(spec: str, method: "Method", option: str, free: str | None) -> None:
    if getattr(method, option) != free:
        raise ConfigError(f"method {spec!r} has a {option} already; accepted: {method.label} without that option.")


def _numbers(shares: str) -> list[float]:
    try:
        return [float(share) for share in shares.split(",")]
    except ValueError as error:
        raise ConfigError(f"--shares is {shares!r}; accepted: numbers, divided by commas: 0.2,0.4,0.6,0.8.") from error
