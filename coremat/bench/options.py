"""What one bench is asked for: checked as a whole before anything is built."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from coremat.checks import one_of, whole_number
from coremat.cost.model_size import ModelSize
from coremat.cost.schedule import has_knee
from coremat.errors import ConfigError, UnsupportedError
from coremat.methods.base import Method
from coremat.methods.registry import parse
from coremat.models.load import DTYPES
from coremat.names import DENSE
from coremat.runtime.support import given_and_skipped

WEIGHTS = ("random", "pretrained")
PAPER_KEPT = 1 / 9  # of the image tokens: Table 3's CoreMatching keeps 64 of LLaVA-1.5's 576


@dataclass(frozen=True)
class BenchOptions:
    """The options of `coremat bench`.

    methods: as typed; dense is the first whether typed or not, for all are compared with it. layers: decoder layers
    that are run, all if None. image_tokens_kept: a count for all methods, "knee", or None for the paper's average.
    text_tokens: of the prompt, beside its image. memory_limit: bytes of the device, None for all of them. dtype: "auto"
    is bfloat16, or float16 where a device lacks that.
    """

    model: str
    methods: tuple[str, ...]
    device: str = "auto"
    weights: str = "random"
    layers: int | None = None
    image_tokens_kept: int | str | None = None
    text_tokens: int = 34
    new_tokens: int = 64
    batch_sizes: tuple[int, ...] = (1,)
    dtype: str = "auto"
    memory_limit: int | None = None
    repeats: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", tuple(dict.fromkeys((DENSE, *self.methods))))
        one_of("weights", self.weights, WEIGHTS)
        if self.weights == "pretrained" and self.layers is not None:
            raise ConfigError(f"layers is {self.layers} with pretrained weights; accepted with it: random weights.")
        one_of("dtype", self.dtype, ("auto", *DTYPES))
        self._check_counts()
        for spec in self.methods:
            parse(spec)

    def _check_counts(self) -> None:
        for name in ("text_tokens", "new_tokens", "repeats"):
            whole_number(name, getattr(self, name))
        if not self.batch_sizes:
            raise ConfigError("batch_size is empty; accepted: one or more whole numbers, at least 1.")
        for size in self.batch_sizes:
            whole_number("batch_size", size)
        if isinstance(self.image_tokens_kept, int):
            whole_number("image_tokens_kept", self.image_tokens_kept)
        elif self.image_tokens_kept not in (None, "knee"):
            raise ConfigError(
                f"image_tokens_kept is {self.image_tokens_kept!r}; accepted: a count of at least 1, knee."
            )

    def parsed(self, size: ModelSize, prune_layer: int) -> dict[str, Method]:
        """The methods on a model, by what was typed. A count that is given is the budget of all that prune tokens, and
        the paper's average takes the place of a knee; what was typed behind a method stays."""
        if isinstance(self.image_tokens_kept, int) and self.image_tokens_kept > size.image_tokens > 0:
            raise ConfigError(
                f"image_tokens_kept is {self.image_tokens_kept}; accepted: knee, or 1 to {size.image_tokens}."
            )
        return {spec: self._parsed(spec, size, prune_layer) for spec in self.methods}

    def _parsed(self, spec: str, size: ModelSize, prune_layer: int) -> Method:
        defaults: dict[str, object] = {"prune_layer": prune_layer, "seed": self.seed}
        if isinstance(self.image_tokens_kept, int):
            return parse(spec, **defaults, tokens=self.image_tokens_kept)
        method = parse(spec, **defaults)
        if self.image_tokens_kept is None and size.image_tokens and has_knee(method, size.layers):
            return parse(spec, **defaults, tokens=max(1, round(PAPER_KEPT * size.image_tokens)))
        return method

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def methods_to_time(model: Any, methods: Mapping[str, Method]) -> tuple[dict[str, Method], dict[str, str]]:
    """The methods that a model can run, and why not the others. UnsupportedError if dense is not among them."""
    given, skipped = given_and_skipped(model, methods, timing=True)
    if DENSE in skipped:
        raise UnsupportedError(skipped[DENSE])
    return given, skipped
