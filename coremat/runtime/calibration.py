"""Fits a method to a model: the dense model answers prompts, and what its layers read at the tokens of the answers is
handed to the method's `calibrate`.

Only tokens of answers count, for there the methods leave something out; those of the prompts, image tokens most of
all, have other activations. What is kept is bounded: a random sample of the tokens, the same for every layer.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from coremat import __version__
from coremat.checks import whole_number
from coremat.errors import ConfigError, DataError
from coremat.hooks import Hooks
from coremat.methods.base import Method
from coremat.methods.calibrated import Calibrated, LayerSample
from coremat.methods.calibration_file import Calibration, sizes, weights_of
from coremat.methods.joined import Joined
from coremat.models.adapter import Adapter
from coremat.models.families import adapter_for, whole_model
from coremat.runtime.session import session_of

NEW_TOKENS = 32  # of each answer, at most
TOKENS = 4096  # kept of all answers
LEAST_TOKENS, LEAST_PROMPTS = 32, 4
HELD_OUT = 4  # every so many-th prompt is held out


def calibrated_part(method: Method) -> Calibrated:
    """The part of a method that takes a calibration. ConfigError where none does."""
    for part in (method.tokens, method.by_neuron) if isinstance(method, Joined) else (method,):
        if isinstance(part, Calibrated):
            return part
    raise ConfigError(f"{method.label} takes no calibration; accepted: a method that does (coremat list methods).")


def check_calibration(model: Any, method: Calibrated) -> None:
    """UnsupportedError for a model that the method cannot be fitted to."""
    adapter = adapter_for(whole_model(model))
    if method.takes("linear"):
        adapter.check_linears()
    else:
        adapter.check_ffns()


@torch.no_grad()
def calibrate(
    model: Any,
    method: Method,
    batches: Iterable[Mapping[str, Any]],
    new_tokens: int = NEW_TOKENS,
    tokens: int = TOKENS,
    seed: int = 0,
    on_layer: Callable[[], object] = lambda: None,
) -> Calibration:
    """The method's calibration on a Hugging Face model.

    batches: arguments of `generate`, prompts padded on the left; each is answered with up to `new_tokens`. tokens: how
    many of the answers' tokens are kept, drawn by `seed`. on_layer: called after
    each layer. ConfigError for a method that takes no calibration or a model inside `coremat.apply`, UnsupportedError
    for a model that cannot have one, DataError for too few answers.
    """
    part = calibrated_part(method)
    whole_number("new_tokens", new_tokens, 2)
    whole_number("tokens", tokens, LEAST_TOKENS)
    check_calibration(model, part)
    if session_of(model) is not None:
        raise ConfigError("the model is inside coremat.apply; accepted: a dense model.")
    reading = _Reading(adapter_for(whole_model(model)), part, tokens, seed)
    for batch in batches:
        reading.answer(batch, new_tokens)
    reading.check()
    tensors = part.calibrate(reading.layers(on_layer))
    counts = {"prompts": reading.prompts, "tokens": len(reading.prompt), "held_out_tokens": int(reading.held_out.sum())}
    return Calibration(tensors, described(part.made_with(), model, **counts, new_tokens=new_tokens, seed=seed))


def described(made_with: Mapping[str, Any], model: Any, **counts: int) -> dict[str, Any]:
    """What a file says that it was made of. made_with: name and options of its method; counts: of its data."""
    return {
        "method": made_with["name"],
        "options": made_with["options"],
        "model": type(model).__name__,
        "sizes": sizes(model),
        "weights": weights_of(model),
        **counts,
        "coremat": __version__,
    }


class _Reading:
    """What layers read at a sample of answered tokens: by layer and Linear [n, in], on the CPU."""

    def __init__(self, adapter: Adapter, method: Calibrated, tokens: int, seed: int) -> None:
        self.adapter, self._most = adapter, tokens
        self._draw = torch.Generator().manual_seed(seed)
        self._places = [
            (number, name, adapter.linears(layer)[name])
            for number, layer in enumerate(adapter.layers)
            for name in method.sampled
        ]
        self._kept: dict[tuple[int, str], torch.Tensor] = {}
        self.prompts = 0
        self.prompt = torch.empty(0, dtype=torch.int64)  # of each kept token
        self._lots = torch.empty(0)  # drawn for each of them; the largest stay

    def answer(self, batch: Mapping[str, Any], new_tokens: int) -> None:
        steps: dict[tuple[int, str], list[torch.Tensor]] = {(number, name): [] for number, name, _ in self._places}
        hooks = Hooks()
        try:
            for number, name, linear in self._places:
                hooks.before(linear, _into(steps[number, name]))
            model = self.adapter.model
            ids = model.generate(**batch, do_sample=False, max_new_tokens=new_tokens)
        finally:
            hooks.restore()
        live = live_tokens(ids[:, batch["input_ids"].shape[1] :], self.adapter.model.generation_config.eos_token_id)
        self._check_run(steps, live.shape[1])
        self._keep({place: torch.cat(values, 1)[live] for place, values in steps.items()}, live)

    def _check_run(self, steps: Mapping[tuple[int, str], Sequence[torch.Tensor]], count: int) -> None:
        """Layers of cross-attention are left out where no prompt of a batch has an image."""
        for (number, name), values in steps.items():
            if len(values) != 1 + count:
                raise DataError(
                    f"{name} of layer {number} read {len(values)} times for a prompt and {count} tokens of an answer; "
                    "accepted: once for each, as with an image in every batch."
                )

    def _keep(self, new: Mapping[tuple[int, str], torch.Tensor], live: torch.Tensor) -> None:
        """new: of each place [n, in]; live: bool [B, steps], of which they are."""
        prompt = (torch.arange(len(live))[:, None].expand_as(live) + self.prompts)[live]
        self.prompts += len(live)
        lots = torch.cat([self._lots, torch.rand(len(prompt), generator=self._draw)])
        stay = lots.topk(min(self._most, len(lots))).indices.sort().values
        self._lots, self.prompt = lots[stay], torch.cat([self.prompt, prompt])[stay]
        for place, values in new.items():
            old = self._kept.get(place)
            self._kept[place] = (values if old is None else torch.cat([old, values]))[stay]

    @property
    def held_out(self) -> torch.Tensor:
        return self.prompt % HELD_OUT == HELD_OUT - 1

    def check(self) -> None:
        few = self.prompts < LEAST_PROMPTS or len(self.prompt) < LEAST_TOKENS
        if few or self.held_out.all() or not self.held_out.any():
            raise DataError(
                f"{self.prompts} prompts gave answers of {len(self.prompt)} tokens to calibrate on; accepted: at least "
                f"{LEAST_PROMPTS} prompts and {LEAST_TOKENS} tokens."
            )

    def layers(self, on_layer: Callable[[], object]) -> Iterator[LayerSample]:
        for number, layer in enumerate(self.adapter.layers):
            mlp = self.adapter.ffn(layer)
            device = mlp.gate_proj.weight.device
            inputs = {name: values.to(device) for (own, name), values in self._kept.items() if own == number}
            yield LayerSample(number, mlp, inputs, self.held_out)
            on_layer()


def _into(values: list[torch.Tensor]) -> Callable:
    """A hook that keeps what a module reads at each step; of the prompt, nothing."""

    def hook(module: Any, args: tuple, kwargs: dict) -> None:
        values.append(args[0].cpu() if values else args[0][:, :0].cpu())

    return hook


def live_tokens(new: torch.Tensor, ends: Any) -> torch.Tensor:
    """bool [B, t - 1]: which of the new tokens [B, t] the model read to go on with an answer; the last is not read.

    ends: the id, or ids, that end an answer; None for an answer that does not end.
    """
    read = new[:, :-1].cpu()
    over = torch.isin(read, torch.tensor([] if ends is None else ends, dtype=torch.int64))
    return ~over.cumsum(1).bool()
