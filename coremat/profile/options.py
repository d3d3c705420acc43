"""What one bench is asked for: checked as a whole before anything is built."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from coremat.config import SparsityConfig
from coremat.errors import ConfigError
from coremat.loading import DTYPES
from coremat.methods import parse_method

WEIGHTS = ("random", "pretrained")
DENSE = "dense"
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
        if self.weights not in WEIGHTS:
            raise ConfigError(f"weights is {self.weights!r}; accepted: {', '.join(WEIGHTS)}.")
        if self.weights == "pretrained" and self.layers is not None:
            raise ConfigError(f"layers is {self.layers} with pretrained weights; accepted with it: random weights.")
        if self.dtype not in ("auto", *DTYPES):
            raise ConfigError(f"dtype is {self.dtype!r}; accepted: auto, {', '.join(DTYPES)}.")
        for name in ("text_tokens", "new_tokens", "repeats"):
            _positive(name, getattr(self, name))
        if not self.batch_sizes:
            raise ConfigError("batch_size is empty; accepted: one or more whole numbers, at least 1.")
        for size in self.batch_sizes:
            _positive("batch_size", size)
        if isinstance(self.image_tokens_kept, int):
            _positive("image_tokens_kept", self.image_tokens_kept)
        elif self.image_tokens_kept not in (None, "knee"):
            raise ConfigError(
                f"image_tokens_kept is {self.image_tokens_kept!r}; accepted: a count of at least 1, knee."
            )
        for spec in self.methods:
            parse_method(spec)

    def kept(self, image_tokens: int) -> int | str:
        """How many of so many image tokens a method keeps whose own count is the knee's."""
        if self.image_tokens_kept is None:
            return max(1, round(PAPER_KEPT * image_tokens))
        if isinstance(self.image_tokens_kept, int) and self.image_tokens_kept > image_tokens > 0:
            raise ConfigError(f"image_tokens_kept is {self.image_tokens_kept}; accepted: knee, or 1 to {image_tokens}.")
        return self.image_tokens_kept

    def configs(self, image_tokens: int, prune_layer: int) -> dict[str, SparsityConfig]:
        """The methods. A count that is given is the budget of all that prune tokens, and the paper's average takes the
        place of a knee; what was typed behind a method stays."""
        kept, found = self.kept(image_tokens), {}
        budget = {"tokens": kept} if isinstance(self.image_tokens_kept, int) else {}
        for spec in self.methods:
            config = parse_method(spec, prune_layer=prune_layer, seed=self.seed, **budget)
            knee = config.tokens == "knee" and ":tokens=" not in spec
            found[spec] = replace(config, tokens=kept) if knee else config
        return found

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _positive(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} is {value!r}; accepted: a whole number, at least 1.")
