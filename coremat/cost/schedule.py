"""What each decoder layer sees, caches and computes for one sequence under a method: counted here and nowhere else.

Operations, bytes, the memory plan, projections and the rows of a bench all read a `Schedule`. What it says of the KV
cache is what the cache's tensors hold after a prefill: a stage whose `earlier_cache` is "cut" also cuts the layers
before it, "full" leaves them as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from coremat.checks import whole_number
from coremat.errors import ConfigError
from coremat.methods.base import Method, Stage
from coremat.methods.budget import budget
from coremat.methods.reads import Reads
from coremat.models.shape import DecoderShape


@dataclass(frozen=True)
class Schedule:
    """image_tokens, text_tokens: of the whole prompt; text is all that is no image token. image_tokens_kept: to the
    end. Per decoder layer: tokens, that it sees in the prefill; cached, positions of its KV cache after it; neurons, of
    its FFN that are chosen for the answer or for a token; reads, what a token reads of its weights in a decode step;
    resident, the neurons among which the tokens of the answer may choose."""

    image_tokens: int
    text_tokens: int
    image_tokens_kept: int
    tokens: tuple[int, ...]
    cached: tuple[int, ...]
    neurons: tuple[int, ...]
    reads: tuple[Reads, ...]
    resident: tuple[int, ...]

    @classmethod
    def of(
        cls,
        method: Method,
        layers: int,
        shape: DecoderShape,
        image_tokens: int,
        text_tokens: int,
        kept: Sequence[int] | None = None,
    ) -> "Schedule":
        """shape: of the decoder. kept: image tokens left after each stage that prunes; left out, they follow from the
        budgets, and a knee keeps all (the most that it can). ConfigError for counts that cannot be."""
        whole_number("image_tokens", image_tokens, 0)
        whole_number("text_tokens", text_tokens)
        stages = method.pruning_stages(layers)
        left = (image_tokens, *(_most(method, layers, image_tokens) if kept is None else kept))
        _check_kept(left, len(stages))
        passed = [sum(stage.after <= layer for stage in stages) for layer in range(layers)]
        methods = method.by_layer(layers)
        neurons = tuple(own.neuron_count(shape.ffn) if method.prunes_neurons else shape.ffn for own in methods)
        return cls(
            image_tokens=image_tokens,
            text_tokens=text_tokens,
            image_tokens_kept=left[-1],
            tokens=tuple(text_tokens + left[number] for number in passed),
            cached=tuple(text_tokens + left[_last_cut(stages, number)] for number in passed),
            neurons=neurons,
            reads=tuple(own.reads(layer, shape) for layer, own in enumerate(methods)),
            resident=neurons if method.takes("neurons") else (shape.ffn,) * layers,
        )

    @property
    def prompt_tokens(self) -> int:
        return self.image_tokens + self.text_tokens


def budgets(method: Method, layers: int, image_tokens: int) -> list[int | None]:
    """Image tokens that each stage may keep; None where the method's own rule, a knee, says how many."""
    keeps = [stage.keep for stage in method.pruning_stages(layers)]
    return [None if isinstance(keep, str) else budget(keep, image_tokens) for keep in keeps]


def has_knee(method: Method, layers: int) -> bool:
    """Whether the prompt decides how many tokens are kept."""
    return any(stage.keep == "knee" for stage in method.pruning_stages(layers))


def _most(method: Method, layers: int, image_tokens: int) -> list[int]:
    counts, left = [], image_tokens
    for count in budgets(method, layers, image_tokens):
        left = left if count is None else min(left, count)
        counts.append(left)
    return counts


def _last_cut(stages: Sequence[Stage], passed: int) -> int:
    """The number of stages behind which a cache's tokens are those left, for a layer that `passed` so many itself."""
    later = range(len(stages), passed, -1)
    return next((number for number in later if stages[number - 1].earlier_cache == "cut"), passed)


def _check_kept(left: Sequence[int], stages: int) -> None:
    """left: image tokens of the prompt, then those after each stage."""
    before, *kept = left
    if len(kept) != stages:
        raise ConfigError(f"kept has {len(kept)} counts; accepted: {stages}, one for each stage that prunes tokens.")
    for count in kept:
        whole_number("image_tokens_kept", count, 0)
        if count > before:
            raise ConfigError(f"image_tokens_kept is {count}; accepted: up to {before}, as many as there are.")
        before = count
