"""The slow, obvious reference of a pruned model: the dense one, in which dropped tokens are hidden by masks and other
than the chosen neurons are zeroed. Nothing leaves it, so that nothing can be misplaced.

    with coremat.apply(model, method) as session, merged_states(session) as merged:
        sparse = answer(model, inputs)
        choice = chosen(session, merged)
    with hidden_and_silenced(model, method, choice):
        dense = answer(model, inputs)

Both give the same logits, to rounding. Only what was chosen is taken over from the session; which layers that concerns,
in the prefill and while decoding, and at which positions, is worked out again from the stages that the method declares.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from coremat.hooks import Hooks
from coremat.methods.base import Method, Stage
from coremat.methods.views import LayerView
from coremat.models.adapter import Adapter
from coremat.models.families import adapter_for, whole_model
from coremat.runtime.session import Session
from coremat.tensors import membership, token_positions
from coremat.timers import Stopwatch


class Merged(NamedTuple):
    """What a stage put in place of tokens: where, bool [B, S] over the prompt's columns, and the hidden states
    [B, S, H] that the places hold in the first layer behind it."""

    where: torch.Tensor
    hidden: torch.Tensor


@dataclass(frozen=True, eq=False)
class Choice:
    """What a session chose for one batch of prompts.

    valid: bool [B, S], the real tokens; images: int64 [B, S], the image of each token, -1 for others; stages: by the
    layers before it, what each stage left, bool [B, S]; neurons: by layer, int64 [B or 1, m]; merged: by the layers
    before it, what each stage merged; seeds: of what is drawn at random, one per sequence; towers: by tower, what its
    calls gave, where the method makes pictures smaller.
    """

    valid: torch.Tensor
    images: torch.Tensor
    stages: Mapping[int, torch.Tensor]
    neurons: Mapping[int, torch.Tensor]
    merged: Mapping[int, Merged] = field(default_factory=dict)
    seeds: Sequence[int] = ()
    towers: Mapping[nn.Module, Sequence[Any]] = field(default_factory=dict)

    @property
    def keep(self) -> torch.Tensor:
        """bool [B, S]: the tokens that stayed to the end."""
        return self.stages[max(self.stages)] if self.stages else self.valid


class MergedStates(dict[int, Merged]):
    """By the layers before each stage what it merged, of the prompt read last; `towers`: see `Choice`."""

    def __init__(self) -> None:
        super().__init__()
        self.towers: dict[nn.Module, list[Any]] = {}


def chosen(session: Session, merged: MergedStates | None = None) -> Choice:
    """What the session chose for the prompt that it read last. merged: of `merged_states`, for methods that merge or
    make pictures smaller."""
    prompt = session.prompt
    size = prompt.valid.shape[1]
    stages = {s.stage.after: s.kept.in_prompt(size) for s in prompt.segments if s.stage is not None}
    towers = {} if merged is None else merged.towers
    neurons = dict(prompt.neurons)
    return Choice(prompt.valid, prompt.image_index, stages, neurons, dict(merged or {}), prompt.seeds, towers)


@contextmanager
def merged_states(session: Session) -> Iterator[MergedStates]:
    """Inside the block of the session: what its stages merge, and what the towers make of smaller pictures."""
    merged = MergedStates()
    hooks = _MergedHooks(session, merged)
    handles = [
        session.layers[after].register_forward_pre_hook(hook, prepend=prepend, with_kwargs=True)
        for after in hooks.places
        for prepend, hook in ((True, hooks.before), (False, hooks.behind(after)))
    ]
    if session.method.takes("smaller_grids"):
        handles += [
            tower.module.register_forward_hook(_see(merged.towers)) for tower in session.adapter.resizable_towers
        ]
    try:
        yield merged
    finally:
        for handle in handles:
            handle.remove()


def _see(towers: dict[nn.Module, list[Any]]) -> Callable:
    def hook(module: nn.Module, args: tuple, output: Any) -> None:
        towers.setdefault(module, []).append(copy(output))  # models write into what a tower gave

    return hook


class _MergedHooks:
    """Hidden states on both sides of what the session does before a layer."""

    def __init__(self, session: Session, merged: dict[int, Merged]) -> None:
        self.session, self.merged = session, merged
        self._whole = torch.empty(0)
        stages = session.method.stages(len(session.layers))
        self.places = [stage.after for stage in stages if stage.keep != "all"]

    def before(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._whole = args[0]

    def behind(self, after: int) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if _is_prefill(kwargs["past_key_values"], after):
                self.merged[after] = self._merged(after, args[0])

        return hook

    def _merged(self, after: int, hidden: torch.Tensor) -> Merged:
        """At the decoder's input all image tokens that are left; later those that do not hold what they held."""
        prompt = self.session.prompt
        size, kept = prompt.valid.shape[1], prompt.present.kept
        index = torch.arange(size, device=hidden.device).expand(len(hidden), -1) if kept.index is None else kept.index
        whole = hidden.new_zeros(len(hidden), size, hidden.shape[-1])
        placed = whole.scatter(1, index[..., None].expand_as(hidden), hidden)
        if after == 0:
            return Merged(kept.in_prompt(size) & (prompt.image_index >= 0), placed)
        old = prompt.segments[-2].kept.index
        before = self._whole if old is None else whole.scatter(1, old[..., None].expand_as(self._whole), self._whole)
        return Merged(kept.in_prompt(size) & (placed != before).any(-1), placed)


def _is_prefill(cache: Any, layer: int = 0) -> bool:
    return cache is None or cache.get_seq_length(layer) == 0


@contextmanager
def hidden_and_silenced(model: Adapter | nn.Module, method: Method, choice: Choice) -> Iterator[None]:
    """Inside the block `model` is dense, and sees of each prompt what `choice` left, layer by layer.

    model: or its adapter. Where `decode_ffn` chooses neurons token by token, or `linear` inputs, it decodes here as it
    does in a session, of the neurons that were chosen for the answer, if any were; `edit_cache` gets a view without
    attention, in which hidden tokens are padding.
    """
    adapter = model if isinstance(model, Adapter) else adapter_for(whole_model(model))
    hooks = Hooks()
    try:
        _Reference(adapter, method, choice).install(hooks)
        yield
    finally:
        hooks.restore()


class _Reference:
    def __init__(self, adapter: Adapter, method: Method, choice: Choice) -> None:
        self.adapter, self.method, self.choice = adapter, method, choice
        self.by_layer = method.by_layer(len(adapter.layers))
        self.state = method.setup(adapter.model)
        self.stages = [stage for stage in method.stages(len(adapter.layers)) if stage.keep != "all"]
        self.prefill = True
        self._activations: torch.Tensor | None = None

    def install(self, hooks: Hooks) -> None:
        hooks.before(self.adapter.decoder, self._begin)
        for tower, outputs in self.choice.towers.items():
            hooks.after(tower, self._replay(iter(outputs)))
        for number, layer in enumerate(self.adapter.layers):
            if self.stages:
                hooks.before(layer, self._hide(number))
            if self.method.takes("neurons"):
                hooks.before(self.adapter.ffn(layer).down_proj, self._silence(number))
            if self.method.takes("decode_ffn"):
                mlp = self.adapter.ffn(layer)
                hooks.replace(mlp, "forward", self._while_decoding(mlp.forward, self._ffn(number, mlp)))
            if self.method.takes("linear"):
                self._replace_linears(hooks, number, layer)
            if self.method.takes("edit_cache"):
                hooks.before(self.adapter.ffn(layer).down_proj, self._see_activations)
                hooks.after(layer, self._edit(number))

    def _replay(self, outputs: Iterator[Any]) -> Callable:
        """What the tower makes of a smaller picture, in place of what it makes here: the first layer's tokens get it
        by `merged` too, and what a decoder adds between its layers by this alone."""
        return lambda module, args, kwargs, output: copy(next(outputs))

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.prefill = _is_prefill(kwargs.get("past_key_values"))

    # --- tokens -------------------------------------------------------------------------------------------------------

    def seen(self, number: int) -> torch.Tensor:
        """bool [B, S]: the tokens that a layer sees in the prefill."""
        before = [stage.after for stage in self.stages if stage.after <= number]
        return self.choice.stages[before[-1]] if before else self.choice.valid

    def cached(self, number: int) -> torch.Tensor:
        """bool [B, S]: the prompt's tokens that a layer sees while decoding: a later stage may have cut its cache."""
        cutting = [stage.after for stage in self.stages if stage.after > number and stage.earlier_cache == "cut"]
        return self.choice.stages[cutting[-1]] if cutting else self.seen(number)

    def counted(self, number: int) -> torch.Tensor | None:
        """bool [B, S]: the tokens by which a layer counts its positions; None: by all, as the dense model."""
        restarts = [stage.after for stage in self.stages if stage.after <= number and self._restarts(stage)]
        return self.choice.stages[restarts[-1]] if restarts else None

    def _restarts(self, stage: Stage) -> bool:
        return stage.positions == "restart" or (stage.positions == "auto" and self.adapter.plain_positions)

    def _hide(self, number: int) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            hidden, counted = args[0], self.counted(number)
            if self.prefill and number in self.choice.merged:
                where, held = self.choice.merged[number]
                hidden = torch.where(where[..., None], held, hidden)
            columns = 0 if self.prefill else kwargs["past_key_values"].layers[number].keys.shape[2]
            seen = self.seen(number) if self.prefill else self.cached(number)
            own = kwargs.get("attention_mask")
            changes = {"attention_mask": additive(seen, columns, hidden.shape[1], hidden.dtype, own)}
            if counted is not None:
                changes |= self._positions(module, counted, columns, hidden)
            return (hidden, *args[1:]), kwargs | changes

        return hook

    def _positions(self, layer: nn.Module, counted: torch.Tensor, columns: int, hidden: torch.Tensor) -> dict[str, Any]:
        """What a layer is given to turn queries and keys of the present columns by."""
        new = torch.arange(columns, columns + hidden.shape[1], device=counted.device) - counted.shape[1]
        positions = token_positions(counted) if self.prefill else counted.sum(1, keepdim=True) + new
        return {"position_ids": positions, "position_embeddings": self.adapter.rotary(layer, hidden, positions)}

    # --- neurons and the cache ----------------------------------------------------------------------------------------

    def _silence(self, number: int) -> Callable:
        first = self.method.prefill_neurons_from()

        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            core = self.choice.neurons.get(number)
            if core is None or (self.prefill and (first is None or number < first)):
                return None
            return (args[0] * membership(core, args[0].shape[-1])[:, None], *args[1:]), kwargs

        return hook

    def _ffn(self, number: int, mlp: Any) -> Callable:
        sparse, core = self.by_layer[number].decode_ffn(number, mlp, self.state), self.choice.neurons.get(number)
        if core is not None:
            sparse.prepare(core, Stopwatch(core.device))
        return mlp.forward if core is None and self.method.takes("neurons") else sparse

    def _replace_linears(self, hooks: Hooks, number: int, layer: nn.Module) -> None:
        for name, linear in self.adapter.linears(layer).items():
            sparse = self.by_layer[number].linear(number, name, linear, self.state)
            if sparse is not None:
                hooks.replace(linear, "forward", self._while_decoding(linear.forward, sparse))

    def _while_decoding(self, dense: Callable, sparse: Callable) -> Callable:
        return lambda x: dense(x) if self.prefill else sparse(x)

    def _see_activations(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._activations = args[0]

    def _edit(self, number: int) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            if not self.prefill:
                return
            own, seen, activations = kwargs["past_key_values"].layers[number], self.seen(number), self._activations
            images = torch.where(seen, self.choice.images, -1)
            view = LayerView(number, seen, images, state=self.state, seeds=lambda: self.choice.seeds)
            view.add(activations=lambda: activations, keys=lambda: own.keys, values=lambda: own.values)
            self.method.edit_cache(view)

        return hook


def additive(
    seen: torch.Tensor, cached: int, new: int, dtype: torch.dtype, own: torch.Tensor | None = None
) -> torch.Tensor:
    """[B, 1, new, cached + new]: 0 for the prompt's `seen` columns and all later ones, -inf for the others and for
    what the model's `own` mask (bool, or what is added to the logits) hides; causal where there is none."""
    columns = torch.arange(cached + new, device=seen.device)
    rows = columns[cached:, None]
    shown = torch.cat([seen, seen.new_ones(len(seen), cached + new - seen.shape[1])], 1)
    allowed = columns <= rows if own is None else (own if own.dtype == torch.bool else own == 0)[:, 0]
    allowed = (shown[:, None] & allowed) | (columns == rows)  # its own column, so that no softmax is empty
    return torch.zeros(allowed.shape, dtype=dtype, device=seen.device).masked_fill(~allowed, -torch.inf)[:, None]
