"""What pruning each decoder layer alone costs an answer: the file of `layer_shares=FILE`.

The dense model answers prompts. Then its answer is read once more for each layer and share, with the method in that one
layer and everything else dense, and the cost is the mean Kullback-Leibler divergence of the next token's distribution
from the dense model's, over the tokens of the answer. As in any session the prompt is read densely, and there the
method chooses; so a prompt is read once, and an answer in one step of all its tokens, in which the layers before the
pruned one need not run: they give what they gave to the dense model.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import nn

from coremat.checks import whole_number
from coremat.errors import ConfigError, DataError
from coremat.ffn import SparseFFN, make_ffn
from coremat.hooks import Hooks
from coremat.methods.base import Forward, Method
from coremat.methods.budget import as_fraction
from coremat.methods.calibration_file import Calibration
from coremat.methods.joined import Joined
from coremat.methods.layer_shares import LayerShares
from coremat.methods.views import LayerView
from coremat.models.adapter import Adapter
from coremat.models.families import adapter_for, whole_model
from coremat.runtime.calibration import LEAST_TOKENS, NEW_TOKENS, described, live_tokens
from coremat.runtime.session import apply
from coremat.timers import Stopwatch

GRID = (0.2, 0.4, 0.6, 0.8)
ROWS = 32  # distributions that are held in float64 at once
KINDS = ("token_type_ids", "mm_token_type_ids")


def divided_part(method: Method) -> LayerShares:
    """The part of a method whose share may differ from layer to layer. ConfigError where there is none."""
    for part in (method.tokens, method.by_neuron) if isinstance(method, Joined) else (method,):
        if isinstance(part, LayerShares):
            return part
    raise ConfigError(f"{method.label} has no layer_shares; accepted: a method that does (coremat list methods NAME).")


@torch.no_grad()
def layer_costs(
    model: Any,
    method: Method,
    batches: Iterable[Mapping[str, Any]],
    grid: Sequence[float] = GRID,
    new_tokens: int = NEW_TOKENS,
    on_layer: Callable[[], object] = lambda: None,
) -> Calibration:
    """The costs of a Hugging Face model's layers, `costs` [L, K] in nats a token, at the shares of `grid` [K], and at 1
    where a method has several shares: there it may still leave neurons out.

    batches: arguments of `generate`, prompts padded on the left; each is answered with up to `new_tokens`. on_layer:
    called after each layer of each batch. ConfigError for a method without `layer_shares`, a grid that is none or a
    model inside `coremat.apply`, UnsupportedError for a model that the method cannot prune, DataError for too few
    answers and for layers that a prompt skips.
    """
    part = divided_part(method)
    whole_number("new_tokens", new_tokens, 2)
    check_grid(grid)
    grid = (*grid, 1.0) if len(part.share_options) > 1 else grid
    adapter, one = adapter_for(whole_model(model)), OneLayer(part, [as_fraction(share) for share in grid])
    costs = torch.zeros(len(adapter.layers), len(grid), dtype=torch.float64)
    prompts = tokens = 0
    with apply(model, one):
        for batch in batches:
            answered = _Answered(adapter, one, batch, new_tokens)
            prompts, tokens = prompts + len(answered.live), tokens + int(answered.live.sum())
            for layer, own in enumerate(costs if answered.live.any() else ()):
                own += torch.stack([answered.cost(layer, number) for number in range(len(grid))])
                on_layer()
    if tokens < LEAST_TOKENS:
        raise DataError(
            f"{prompts} prompts gave answers of {tokens} tokens to compare; accepted: at least {LEAST_TOKENS}."
        )
    found = {"costs": costs / tokens, "grid": torch.tensor(grid, dtype=torch.float64)}
    about = described(part.costs_made_with(), model, prompts=prompts, tokens=tokens, new_tokens=new_tokens)
    return Calibration(found, {**about, "measured": part.identity()})


def check_grid(grid: Sequence[float]) -> None:
    """ConfigError unless shares ascend between 0 and 1."""
    if not grid or list(grid) != sorted(set(grid)) or not 0 < grid[0] <= grid[-1] < 1:
        raise ConfigError(
            f"the shares are {', '.join(map(str, grid)) or 'none'}; accepted: above 0, ascending, below 1."
        )


# --- one layer at a time ----------------------------------------------------------------------------------------------


class OneLayer(Method):
    """A method's neurons in one layer at one share, as `at` says (the layer, the number of the share); None: in none.
    `ran`: whether that layer was there since `at` was set."""

    def __init__(self, method: LayerShares, grid: Sequence[Fraction]) -> None:
        self._method, self.shares = method, [method.at_share(share) for share in grid]
        self.chosen: dict[int, list[torch.Tensor]] = {}
        self.at: tuple[int, int] | None = None
        self.ran = False

    def takes(self, slot: str) -> bool:
        if slot == "decode_ffn":
            return self._method.replaces_ffns
        return slot in ("neurons", "linear") and self._method.takes(slot)

    def setup(self, model: Any) -> Any:
        return self._method.setup(model)

    def neurons(self, layer: LayerView) -> torch.Tensor:
        """All of them; what the method chooses at each share is kept for when its turn comes."""
        self.chosen[layer.number] = [own.neurons(layer) for own in self.shares]
        return torch.arange(layer.activations.shape[-1], device=layer.activations.device)[None]

    def decode_ffn(self, number: int, mlp: Any, state: Any) -> SparseFFN:
        return SwitchedFFN(self, number, mlp, state)

    def linear(self, layer: int, name: str, linear: nn.Linear, state: Any) -> Forward | None:
        dense, forwards = linear.forward, [own.linear(layer, name, linear, state) for own in self.shares]

        def forward(x: torch.Tensor) -> torch.Tensor:
            number = self.turn(layer)
            sparse = None if number is None else forwards[number]
            return dense(x) if sparse is None else sparse(x)

        return forward

    def turn(self, layer: int) -> int | None:
        """The number of the share that this layer has now; None: it is whole."""
        if self.at is None or self.at[0] != layer:
            return None
        self.ran = True
        return self.at[1]


class SwitchedFFN:
    """The dense FFN (`coremat.ffn.SparseFFN`), or, at its layer's turn, the method's, made for that step alone: a model
    has no room for all of them."""

    bytes = 0

    def __init__(self, one: OneLayer, number: int, mlp: Any, state: Any) -> None:
        self._one, self._number, self._mlp, self._state = one, number, mlp, state
        self._dense = mlp.forward

    def prepare(self, core: torch.Tensor, watch: Stopwatch) -> None:
        self._watch = watch

    def materialise(self) -> None:
        """There is nothing to copy."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        share = self._one.turn(self._number)
        return self._dense(x) if share is None else self._pruned(share)(x)

    def _pruned(self, share: int) -> SparseFFN:
        method, number = self._one.shares[share], self._number
        own = method.takes("decode_ffn")
        ffn = method.decode_ffn(number, self._mlp, self._state) if own else make_ffn(self._mlp, "auto")
        if method.takes("neurons"):
            ffn.prepare(self._one.chosen[number][share], self._watch)
        return ffn


# --- one batch --------------------------------------------------------------------------------------------------------


class _Answered:
    """A batch of prompts with the dense model's answers. live: bool [B, t - 1], the tokens that it read of them."""

    def __init__(self, adapter: Adapter, one: OneLayer, batch: Mapping[str, Any], new_tokens: int) -> None:
        self._model, self._layers, self._one, one.at = adapter.model, list(adapter.layers), one, None
        ids = self._model.generate(**batch, do_sample=False, max_new_tokens=new_tokens)
        start = batch["input_ids"].shape[1]
        self.live = live_tokens(ids[:, start:], self._model.generation_config.eos_token_id)
        read = self._model.generate(**batch, do_sample=False, max_new_tokens=1, return_dict_in_generate=True)
        self._again = {"input_ids": ids[:, :-1], "past_key_values": read.past_key_values, **_longer(batch, self._new)}
        self._outputs: dict[int, Any] = {}  # of the dense model's layers
        if self.live.any():
            dense = self._dense_logits().double()
            self._probabilities = dense.softmax(-1)
            self._entropy = torch.special.entr(self._probabilities).sum(-1)

    @property
    def _new(self) -> int:
        return self.live.shape[1]

    def cost(self, layer: int, share: int) -> torch.Tensor:
        """The divergence with this layer alone pruned, summed over the tokens: float64, on the CPU."""
        self._one.at, self._one.ran = (layer, share), False
        logits = self._logits_from(layer)
        if not self._one.ran:
            raise DataError(f"layer {layer} was skipped; accepted: prompts that every layer reads, as with an image.")
        parts = zip(self._probabilities.split(ROWS), self._entropy.split(ROWS), logits.split(ROWS), strict=True)
        return torch.stack([divergence(*part) for part in parts]).sum().cpu()

    def _dense_logits(self) -> torch.Tensor:
        hooks = Hooks()
        for number, layer in enumerate(self._layers):
            hooks.after(layer, self._keep_output(number))
        return self._logits(hooks)

    def _keep_output(self, number: int) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            self._outputs[number] = output

        return hook

    def _logits_from(self, first: int) -> torch.Tensor:
        """The layers before `first` do not run."""
        hooks = Hooks()
        for number, output in self._outputs.items():
            if number < first:
                hooks.replace(self._layers[number], "forward", partial(_given, output))
        return self._logits(hooks)

    def _logits(self, hooks: Hooks) -> torch.Tensor:
        """What the model makes of the tokens of the answers, under these hooks: [n, V], of those that are live."""
        found: list[torch.Tensor] = []
        rows = self.live.to(self._again["input_ids"].device)
        try:
            hooks.after(self._model, lambda module, args, kwargs, output: found.append(output.logits[rows]))
            with _unchanged(self._again["past_key_values"]):
                self._model.generate(**self._again, do_sample=False, max_new_tokens=1, logits_to_keep=self._new)
        finally:
            hooks.restore()
        return found[0]


def _given(output: Any, *args: Any, **kwargs: Any) -> Any:
    return output


def divergence(probabilities: torch.Tensor, entropy: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(p || softmax(logits)), summed. probabilities: float64 [n, V], entropy: theirs, [n]; logits: [n, V]."""
    exact = logits.double()
    crossed = exact.logsumexp(-1) - (probabilities * exact).sum(-1)
    return (crossed - entropy).clamp(min=0).sum()


def _longer(batch: Mapping[str, Any], new: int) -> dict[str, torch.Tensor]:
    """What says of each token what it is, for so many more tokens of text."""
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    kinds = {name: nn.functional.pad(batch[name], (0, new)) for name in KINDS if name in batch}
    return {"attention_mask": nn.functional.pad(mask, (0, new), value=1), **kinds}


@contextmanager
def _unchanged(cache: Any) -> Iterator[None]:
    """Afterwards the cache holds what it held: new columns come into new memory, or behind those that are there."""
    held = [vars(layer).copy() for layer in cache.layers]
    try:
        yield
    finally:
        for layer, own in zip(cache.layers, held, strict=True):
            vars(layer).clear()
            vars(layer).update(own)
