"""Stages of pruning inside the decoder: scores, fewer tokens, and what the layers behind are given in their place."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from coremat.errors import ConfigError, UnsupportedError
from coremat.hooks import Hooks
from coremat.methods.base import Method, Stage
from coremat.methods.common.attention import attention_weights
from coremat.methods.common.energy import column_norms
from coremat.methods.views import LayerView
from coremat.models.adapter import Adapter
from coremat.runtime.choosing import keep_tokens
from coremat.runtime.kept_tokens import KeptTokens, Narrowing
from coremat.runtime.masks import backend_of, decode_mask, prefill_mask
from coremat.runtime.prompt import Prompt, Segment
from coremat.runtime.reductions import check_reduction
from coremat.tensors import on_host, take, token_positions

Call = tuple[tuple, dict[str, Any]]


def check_stages(method: Method, adapter: Adapter) -> list[Stage]:
    """The stages of a method on a model, in order. ConfigError or UnsupportedError for stages that cannot be."""
    stages = method.pruning_stages(len(adapter.layers))
    for stage in stages:
        if stage.positions == "restart" and not adapter.plain_positions:
            raise UnsupportedError(
                f"{method.label} restarts positions, which have several axes in {type(adapter.model).__name__}; "
                "accepted: positions original, auto."
            )
        needed = ("score",) if stage.after else ("before_projector", "before_decoder")
        if not any(map(method.takes, needed)):
            raise ConfigError(f"{method.label} has a stage after {stage.after} layers and no {' or '.join(needed)}.")
    return stages


class TokenStages:
    """The stages of one method on one model; `view` and the layer hooks of the session tell it what is under way."""

    def __init__(self, adapter: Adapter, method: Method, stages: Sequence[Stage], state: Any) -> None:
        self.adapter, self.method, self.stages, self._state = adapter, method, stages, state
        self._at = {stage.after: stage for stage in stages}
        self.scored = [stage.after - 1 for stage in stages]
        self._static: dict[int, dict[str, Any]] = {}
        self._cache: Any = None
        self._view: LayerView | None = None
        self._attention_input: tuple[int, torch.Tensor, Any] | None = None
        self._memo: dict[Any, tuple[Any, Any]] = {}
        self._norms: dict[int, torch.Tensor] = {}
        self._plan: list[tuple[Segment, KeptTokens]] = []
        self._narrowed: KeptTokens | None = None
        # Padding, int64 [B, 1], that the model counts in positions which nobody gave; 0 where there is none.
        self.uncounted: torch.Tensor | int = 0

    def install(self, hooks: Hooks) -> None:
        self.adapter.narrow_additions(hooks, lambda: self._narrowed.index if self._narrowed else None)
        for number in self.scored:
            layer = self.adapter.layers[number]
            if hasattr(layer, "self_attn"):
                hooks.before(layer.self_attn, self._see_attention_input(number))

    def forget(self) -> None:
        """Before each forward pass."""
        self._view = self._attention_input = self._narrowed = self._cache = None
        self.uncounted = 0
        self._memo.clear()

    def restarts(self, stage: Stage) -> bool:
        """Whether positions are counted anew from a stage on."""
        return stage.positions == "restart" or (stage.positions == "auto" and self.adapter.plain_positions)

    # --- views --------------------------------------------------------------------------------------------------------

    def _see_attention_input(self, number: int) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            self._attention_input = number, hidden.detach(), kwargs["position_embeddings"]

        return hook

    def view(self, prompt: Prompt, number: int, activations: torch.Tensor | None = None) -> LayerView:
        """A layer as a method sees it; one view serves every slot."""
        layer, parts = self.adapter.layers[number], dict[str, Callable[[], Any]]()
        if activations is not None:
            parts["activations"] = lambda: activations
            parts["down_norms"] = lambda: self._down_norms(number)
        if self._cache is not None:
            parts["keys"] = lambda: self._cache.layers[number].keys
            parts["values"] = lambda: self._cache.layers[number].values
            parts["output_weight"] = lambda: self.adapter.output_projection(layer)
        queries = None
        if self._attention_input is not None and self._attention_input[0] == number:
            _, hidden, rotary = self._attention_input
            queries = partial(self.adapter.queries, layer, hidden, rotary)
        self._view = LayerView(
            number,
            prompt.present.kept.live,
            prompt.images_present,
            queries,
            self._state,
            seeds=lambda: prompt.seeds,
            scaling=lambda: self.adapter.scaling(layer),
            **parts,
        )
        return self._view

    def _down_norms(self, number: int) -> torch.Tensor:
        """The l2 norms of the columns of a layer's `down_proj`, float32 [F], made once: weights keep their values."""
        if number not in self._norms:
            self._norms[number] = column_norms(self.adapter.ffn(self.adapter.layers[number]).down_proj.weight)
        return self._norms[number]

    def last_view(self, prompt: Prompt, number: int, cache: Any) -> LayerView:
        """The layer that has just run, with its cache."""
        self._cache = cache
        if self._view is None or self._view.number != number:
            return self.view(prompt, number)
        self._view.add(keys=lambda: cache.layers[number].keys, values=lambda: cache.layers[number].values)
        return self._view

    def drop_view(self) -> None:
        """Nothing looks at the layer any more: its activations may go."""
        self._view = None

    # --- the prefill --------------------------------------------------------------------------------------------------

    def begin(self, prompt: Prompt, stage: Stage, keep: torch.Tensor) -> None:
        """A stage before the first layer. keep: bool [B, S], on the CPU."""
        prompt.segments.append(Segment(0, prompt.present.kept.then(keep).kept, stage=stage))

    def prefill(self, prompt: Prompt, number: int, args: tuple, kwargs: dict) -> Call | None:
        """Before a layer: prune if it is time, and give the layer what is left."""
        hidden, self._cache = args[0], kwargs.get("past_key_values")
        self._plan = []
        if number in self._at:
            hidden = self._prune(prompt, self._at[number], hidden, kwargs)
        elif number == 0 and prompt.is_pruned:
            hidden = prompt.present.kept.of_prompt(hidden)
        if not prompt.is_pruned:
            return None
        segment = prompt.present
        self._narrowed = segment.kept
        return (hidden, *args[1:]), kwargs | self._layer_inputs(segment, number, hidden, kwargs)

    def _prune(self, prompt: Prompt, stage: Stage, hidden: torch.Tensor, kwargs: dict) -> torch.Tensor:
        """The hidden states [B, K, H] of what stays. kwargs: of the layer that is the first to see fewer tokens."""
        with prompt.selection.running(), torch.no_grad():
            view = self._view_before(prompt, stage.after, hidden, kwargs)
            scores = self._scores(stage, view)
            counted = self.method.counted_by(stage, view) if stage.keep == "knee" else None
            scores, *rest = on_host(*(t for t in (scores, counted) if t is not None))
            images = view.image_index.cpu()
            keep = keep_tokens(stage, scores, rest[0] if rest else None, images, view.valid.cpu(), prompt.image_tokens)
            if stage.keep == "knee":
                prompt.curves.append((rest[0] if rest else scores, images))
            if self.method.takes("recycle"):
                hidden, keep = self._recycled(stage, hidden, scores, keep, images)
            narrowing = prompt.present.kept.then(keep)
            prompt.segments.append(self._segment(prompt, stage, narrowing))
        self.drop_view()
        return take(hidden, narrowing.step, 1)

    def _view_before(self, prompt: Prompt, number: int, hidden: torch.Tensor, kwargs: dict) -> LayerView:
        """The layer before `number`, with what can be seen between the two."""
        view = self.last_view(prompt, number - 1, self._cache)

        def next_attention() -> torch.Tensor:
            layer = self.adapter.layers[number]
            normed = layer.input_layernorm(hidden)
            rotary = self._rotary(prompt.present, number, hidden, kwargs["position_embeddings"])
            queries = self.adapter.queries(layer, normed, rotary, view.last_column)
            keys = self.adapter.keys(layer, normed, rotary)
            return attention_weights(queries, keys, view.valid[:, None], self.adapter.scaling(layer))

        view.add(hidden=lambda: hidden, next_attention=next_attention)
        return view

    def _scores(self, stage: Stage, view: LayerView) -> torch.Tensor:
        scores = self.method.score(stage, view)
        if not isinstance(scores, torch.Tensor) or scores.shape != view.valid.shape:
            found = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
            raise UnsupportedError(
                f"{self.method.label} gave scores {found} after layer {view.number}; "
                f"accepted: a tensor {tuple(view.valid.shape)}, one score per token."
            )
        return scores.detach()

    def _recycled(
        self, stage: Stage, hidden: torch.Tensor, scores: torch.Tensor, keep: torch.Tensor, images: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states and keep, row by row, with what the method merged."""
        hidden, keep = hidden.clone(), keep.clone()
        for row, image in enumerate(images >= 0):
            if not image.any():
                continue
            columns = image.nonzero()[:, 0]
            place = row, columns.to(hidden.device)
            reduction = self.method.recycle(stage, hidden[place], scores[row, columns], keep[row, columns])
            check_reduction(self.method, reduction, hidden[place])
            keep[row, columns] = reduction.keep.cpu() | (keep[row, columns] & (columns == images.shape[1] - 1))
            if reduction.features is not None:
                hidden[place] = reduction.features.to(hidden.dtype)
        return hidden, keep

    def _segment(self, prompt: Prompt, stage: Stage, narrowing: Narrowing) -> Segment:
        """The layers from a stage on, with positions that are counted anew there or go on from an earlier stage."""
        before, kept = prompt.present, narrowing.kept
        if self.restarts(stage):
            base = prompt.segments[1].kept if self._restarted_at_input(prompt) else prompt.segments[0].kept
            return Segment(stage.after, kept, token_positions(kept.live), base.counts - kept.counts, stage)
        positions = None if before.positions is None else take(before.positions, narrowing.step, 1)
        return Segment(stage.after, kept, positions, before.shift, stage)

    def _restarted_at_input(self, prompt: Prompt) -> bool:
        first = prompt.segments[1].stage if len(prompt.segments) > 1 else None
        return first is not None and first.after == 0 and self.restarts(first)

    def _layer_inputs(self, segment: Segment, number: int, hidden: torch.Tensor, kwargs: dict) -> dict[str, Any]:
        """Rotary tables, positions and mask of the tokens that are left, made once for layers that were given alike."""
        kept, rotary, mask = segment.kept, kwargs["position_embeddings"], kwargs.get("attention_mask")
        size = rotary[0].shape[1]
        found: dict[str, Any] = {"position_embeddings": self._rotary(segment, number, hidden, rotary)}
        if kwargs.get("position_ids") is not None:
            positions = kwargs["position_ids"]
            counted = segment.positions
            found["position_ids"] = kept.of_prompt(positions) if counted is None else counted
        return found | {
            "attention_mask": self._once(
                ("mask", segment), mask, lambda: prefill_mask(mask, kept, size, *self._attention)
            )
        }

    def _rotary(self, segment: Segment, number: int, hidden: torch.Tensor, whole: Any) -> Any:
        """The rotary tables of the tokens that are left. whole: those of the whole prompt, for this layer."""
        if segment.positions is not None:
            return self._turned(segment, number, hidden, segment.positions, whole[0])
        return self._once(("rotary", segment), whole[0], lambda: tuple(segment.kept.of_prompt(t) for t in whole))

    # --- decoding -----------------------------------------------------------------------------------------------------

    def decode(self, prompt: Prompt, number: int, args: tuple, kwargs: dict) -> Call | None:
        """Before a layer: the mask of its own cache, and positions as it counts them."""
        if not prompt.is_pruned:
            return None
        if not self._plan:
            layers = range(len(self.adapter.layers))
            self._plan = [(prompt.segment_of(layer), prompt.cached(layer)) for layer in layers]
        segment, kept = self._plan[number]
        changes: dict[str, Any] = {}
        if segment.shift is not None:
            rotary = kwargs["position_embeddings"][0]
            changes["position_ids"] = kwargs["position_ids"] - self.uncounted - segment.shift
            changes["position_embeddings"] = self._turned(segment, number, args[0], changes["position_ids"], rotary)
        if self._masks_itself(prompt, kept):
            new = args[0].shape[1]
            width = kwargs["past_key_values"].layers[number].keys.shape[2] + new
            changes["attention_mask"] = self._once(
                ("mask", kept, width), None, lambda: decode_mask(kept, width, new, *self._attention)
            )
        return (args, kwargs | changes) if changes else None

    def _masks_itself(self, prompt: Prompt, kept: KeptTokens) -> bool:
        """Whether the model's own mask, made for the first layer's cache, does not fit the tokens of this one."""
        first = self._plan[0][1]
        return not (kept.all_live and first.all_live and prompt.segments[0].kept.all_live and kept.width == first.width)

    def static_step(self, number: int, args: tuple, kwargs: dict) -> Call | None:
        """The same where one step serves every prompt: it brings its own masks, and rotary tables if layers differ."""
        return (args, kwargs | self._static[number]) if self._static else None

    def give_layers(
        self, masks: Sequence[torch.Tensor], rotary: Sequence[dict[Any, Any] | None], groups: Sequence[Sequence[int]]
    ) -> None:
        """What the layers of each group get in the next static step: a mask, and rotary tables by kind of layer, or
        None for those that the decoder makes."""
        for mask, tables, numbers in zip(masks, rotary, groups, strict=True):
            for number in numbers:
                kind = self.adapter.rotary_kind(self.adapter.layers[number])
                own = {} if tables is None else {"position_embeddings": tables[kind]}
                self._static[number] = {"attention_mask": mask, **own}

    # --- shared -------------------------------------------------------------------------------------------------------

    def _turned(self, segment: Segment, number: int, hidden: torch.Tensor, positions: torch.Tensor, like: Any) -> Any:
        layer = self.adapter.layers[number]
        return self._once(("turned", segment), like, lambda: self.adapter.rotary(layer, hidden, positions))

    def _once(self, name: Any, source: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once per forward pass for each source (held here, so that its id stays its own)."""
        key = name, id(source)
        if key not in self._memo:
            self._memo[key] = source, make()
        return self._memo[key][1]

    @property
    def _attention(self) -> tuple[str, torch.dtype]:
        """The attention backend and the dtype of its masks."""
        return backend_of(self.adapter.decoder.config._attn_implementation), self.adapter.model.dtype
