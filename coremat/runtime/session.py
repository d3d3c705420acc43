"""`with coremat.apply(model, method) as session:` makes a Hugging Face model sparse, and dense again on the way out.

All of it is hooks on the unmodified model; no weight changes its value. What a method's slots need is hooked, and
nothing else:

    image tokens before the decoder   the vision tower, the projector, the decoder's input   (`runtime.vision`)
    stages in the decoder             the layers: scores, then fewer tokens, from that layer on
    neurons                           the input of each `down_proj` in the prefill; decoding through core rows (`ffn`)
    inputs of Linears                 the forward of each that the method takes over, while decoding
    the cache                         after each layer of the prefill

When the prompt has been read, the caches of the layers before a stage are cut to what it kept, where the stage says so.
Choosing waits for the device once per stage: the scores come over, the columns that stay go back.
"""

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import StaticCache

from coremat.errors import ConfigError, DataError, UnsupportedError
from coremat.ffn import SparseFFN, check_backend, make_ffn
from coremat.ffn.weight_layout import NeuronMajor, product
from coremat.hooks import Hooks
from coremat.methods import registry
from coremat.methods.base import Forward, Method
from coremat.methods.reads import Reads
from coremat.methods.views import LayerView
from coremat.models.adapter import Adapter
from coremat.models.families import adapter_for, whole_model
from coremat.runtime.cache import check_cache, in_place_cache, shorten
from coremat.runtime.decode_groups import DecodeGroup, groups_of
from coremat.runtime.input_checks import NO_CACHE, PIXELS, check_continuation, check_generate, read_prompt
from coremat.runtime.prompt import Prompt
from coremat.runtime.questions import Questions
from coremat.runtime.stages import TokenStages, check_stages
from coremat.runtime.stats import SequenceStats
from coremat.runtime.vision import BeforeDecoder, check_tower
from coremat.runtime.whole_outputs import WholeOutputs
from coremat.runtime.window import check_window
from coremat.tensors import membership, token_positions

MISMATCH = "do not match"  # of image features and image tokens, in transformers' words

_sessions: "weakref.WeakKeyDictionary[nn.Module, Session]" = weakref.WeakKeyDictionary()


@contextmanager
def apply(model: nn.Module, method: Method | str = "corematching", backend: str = "auto") -> Iterator["Session"]:
    """Run `model` sparsely inside the block. Yields the `Session`, whose `stats` describe the last prompt.

    model: a Hugging Face model, or a PEFT wrapper of one. method: a method, or its name and options
    ("fastv:tokens=64"). backend: how core neurons are computed, one of `coremat.ffn.BACKENDS`. Raises UnsupportedError
    for a model, or a part of it, that the method cannot prune, ConfigError for a method that there is not, a layer that
    the model has not, or a model in use. Threads take turns: each prompt is answered before the next is read.
    """
    session = Session(adapter_for(whole_model(model)), registry.method(method), backend)
    decoder = session.adapter.decoder
    if decoder in _sessions:
        raise ConfigError(f"this {type(model).__name__} is already inside coremat.apply; leave that block first.")
    try:
        try:
            session.hooks.on_restore(lambda: _sessions.pop(decoder, None))
            _sessions[decoder] = session
            session.install()
            yield session
        finally:
            session.hooks.restore()
    finally:
        session.hooks.restore()  # again, if an interrupt came in the moment before the first


def check(model: nn.Module, method: Method) -> None:
    """Raises what `apply` would, and leaves the model alone."""
    Session(adapter_for(whole_model(model)), method)


def session_of(model: nn.Module) -> "Session | None":
    """The session of the block that this model is in."""
    return _sessions.get(adapter_for(whole_model(model)).decoder)


class Session:
    """One model under one method. `sample_seeds` (one per sequence), if given, replaces the seeds of random choices.
    `questions` are for methods that read the question as text: one text per sequence, or what makes a text of the ids
    of a prompt's text tokens."""

    def __init__(self, adapter: Adapter, method: Method, backend: str = "auto") -> None:
        self.adapter, self.method, self.hooks = adapter, method, Hooks()
        self.layers = list(adapter.layers)
        self._by_layer = method.by_layer(len(self.layers))
        self.sample_seeds: Sequence[int] | None = None
        self.questions: Questions | None = None
        check_backend(backend)
        if method.prunes_tokens and adapter.tokens_unsupported is not None:
            raise UnsupportedError(adapter.tokens_unsupported)
        stages = check_stages(method, adapter)
        first = [stage for stage in stages if stage.after == 0]
        if first:
            check_tower(method, adapter)
        if lacking := sorted(method.needs - adapter.provides):
            raise UnsupportedError(
                f"{method.label} needs a {' and a '.join(lacking)}; {type(adapter.model).__name__} gives "
                f"{', '.join(sorted(adapter.provides)) or 'nothing that a method may need'}."
            )
        state = method.setup(adapter.model)
        self._before = BeforeDecoder(adapter, method, first[0], state) if first else None
        self._stages = TokenStages(adapter, method, [stage for stage in stages if stage.after], state)
        self._window = adapter.window if stages else None
        self._ffn = self._make_ffns(backend, state) if method.replaces_ffns else []
        self._linears = self._make_linears(state) if method.takes("linear") else []
        self._outputs = WholeOutputs()
        self._signature = inspect.signature(adapter.core.forward)
        self._lock = threading.RLock()
        self._prompt: Prompt | None = None
        self._prefill = self._generating = False
        self._cache: Any = None

    def _make_ffns(self, backend: str, state: Any) -> list[SparseFFN]:
        self.adapter.check_ffns()
        first = self.method.prefill_neurons_from()
        if first is not None and first >= len(self.layers):
            raise ConfigError(
                f"{self.method.label} prunes neurons in the prefill from layer {first} on; accepted for this model of "
                f"{len(self.layers)} layers: up to {len(self.layers) - 1}."
            )
        mlps = [self.adapter.ffn(layer) for layer in self.layers]
        if self.method.takes("decode_ffn"):
            methods = zip(self._by_layer, mlps, strict=True)
            return [own.decode_ffn(number, mlp, state) for number, (own, mlp) in enumerate(methods)]
        return [make_ffn(mlp, backend) for mlp in mlps]

    def _make_linears(self, state: Any) -> list[tuple[nn.Linear, Forward]]:
        """The Linears that the method takes over while decoding, and their forwards."""
        self.adapter.check_linears()
        made = []
        for number, layer in enumerate(self.layers):
            for name, linear in self.adapter.linears(layer).items():
                sparse = self._by_layer[number].linear(number, name, linear, state)
                made += [] if sparse is None else [(linear, sparse)]
        return made

    # --- what the last prompt was ----------------------------------------------------------------------------------

    @property
    def stats(self) -> list[SequenceStats]:
        """One entry per sequence of the last prefill (with beams: per beam); empty before the first."""
        if self._prompt is None:
            return []
        size = self.adapter.shape.ffn
        chooses = self.method.takes("decode_ffn")
        unlisted = [own.neuron_count(size) if chooses else size for own in self._by_layer]
        return self._prompt.stats(self.adapter.shape, unlisted, self._decode_ffn_bytes)

    @property
    def _decode_ffn_bytes(self) -> int:
        """Weights of FFNs, and of the method's own, that one token reads in a decode step, as wide as the model's."""
        shape, layers = self.adapter.shape, map(self._reads, range(len(self.layers)))
        return self.adapter.model.dtype.itemsize * sum(reads.ffn(shape) + reads.extra for reads in layers)

    def _reads(self, number: int) -> Reads:
        """A layer that a prompt skipped has no neurons chosen and, where it runs at all, runs whole."""
        skipped = self.method.takes("neurons") and self._prompt is not None and number not in self._prompt.neurons
        return Reads() if skipped else self._by_layer[number].reads(number, self.adapter.shape)

    @property
    def prompt(self) -> Prompt:
        """What was read last. ConfigError before the first prompt."""
        if self._prompt is None:
            raise ConfigError("no prompt was read in this block yet; let the model read one first.")
        return self._prompt

    @property
    def groups(self) -> list[DecodeGroup]:
        """The layers whose caches hold the same tokens of the last prompt, at the same positions, in order."""
        return groups_of(self.prompt, len(self.layers))

    @property
    def shift(self) -> torch.Tensor | int:
        """How much earlier each sequence's new tokens come than `generate` counts: [B, 1], or 0."""
        if self._prompt is None or not self._restarts or not self._prompt.is_pruned:
            return 0
        return self._prompt.valid.sum(1, keepdim=True) - self._prompt.segments[1].kept.counts

    @property
    def _restarts(self) -> bool:
        """Whether positions are counted anew at the decoder's input."""
        return self._before is not None and self._stages.restarts(self._before.stage)

    @property
    def workspace_bytes(self) -> int:
        """Memory that holds the core rows."""
        return sum(ffn.bytes for ffn in self._ffn)

    @property
    def ffn_share(self) -> float:
        """Share of the FFNs' rows that a decode step needs for at least one sequence of the last prompt."""
        sets = self._prompt.neurons.values() if self._prompt else ()
        return sum(len(core.unique()) for core in sets) / (len(sets) * self.adapter.shape.ffn) if sets else 1.0

    def give_layers(
        self, masks: Sequence[torch.Tensor], rotary: Sequence[dict[Any, Any] | None], groups: Sequence[Sequence[int]]
    ) -> None:
        """What each group of layers gets in the next static decode step; see `TokenStages.give_layers`."""
        self._stages.give_layers(masks, rotary, groups)

    def materialise(self) -> None:
        """After a prefill: from here on every decode step runs the same code on the same buffers."""
        for ffn in self._ffn:
            ffn.materialise()

    # --- installing --------------------------------------------------------------------------------------------------

    def install(self) -> None:
        hooks, adapter = self.hooks, self.adapter
        hooks.replace(adapter.model, "generate", self._generate(adapter.model.generate))
        hooks.replace(adapter.core, "forward", self._forward(adapter.core.forward))
        hooks.before(adapter.decoder, self._check_begun)
        hooks.after(adapter.decoder, self._end)
        if self._before is not None:
            self._before.install(hooks)
            hooks.before(adapter.decoder, self._enter)
        if self._before is not None or self._stages.stages:
            self._stages.install(hooks)
            self._outputs.install(hooks, adapter.model)
            for number, layer in enumerate(self.layers):
                hooks.before(layer, self._layer_begins(number))
        for number in self._observed():
            hooks.before(adapter.ffn(self.layers[number]).down_proj, self._observe(number))
        if self.method.takes("edit_cache"):
            for number, layer in enumerate(self.layers):
                hooks.after(layer, self._edit_cache(number))
        for mlp, sparse in zip(map(adapter.ffn, self.layers), self._ffn, strict=False):
            self._lay_out(mlp.down_proj)
            hooks.replace(mlp, "forward", self._while_decoding(mlp.forward, sparse))
        for linear, forward in self._linears:
            if self.method.input_major:
                self._lay_out(linear)
            hooks.replace(linear, "forward", self._while_decoding(linear.forward, forward))

    def _observed(self) -> Sequence[int]:
        """The layers whose activations are looked at in the prefill."""
        if self.method.takes("neurons") or self.method.takes("edit_cache"):
            return range(len(self.layers))
        return [n for n in self._stages.scored if hasattr(self.adapter.ffn(self.layers[n]), "down_proj")]

    def _lay_out(self, linear: nn.Linear) -> None:
        """Input by input; of a `down_proj` these are the neurons."""
        layout = NeuronMajor(linear.weight)
        if not layout.is_needed:
            return
        self.hooks.on_restore(layout.leave)
        layout.enter()
        if linear.weight.device.type == "cpu":
            self.hooks.replace(linear, "forward", product(linear, linear.forward))

    def _while_decoding(self, dense: Callable, sparse: Callable) -> Callable:
        """Decode steps take the sparse forward; the prefill takes whatever forward was there."""

        def forward(x: torch.Tensor) -> torch.Tensor:
            return dense(x) if self._prefill else sparse(x)

        return forward

    # --- a call begins ------------------------------------------------------------------------------------------------

    def _generate(self, generate: Callable) -> Callable:
        """`generate`, one thread at a time, after checks of what it is asked for."""

        @functools.wraps(generate)
        def checked(*args: Any, **kwargs: Any) -> Any:
            ids = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
            check_generate(self.adapter, self._window, ids, kwargs)
            with self._lock:
                self._generating = True
                try:
                    if self._before is not None and ids is not None and kwargs.get("past_key_values") is None:
                        self._before.announce(ids, kwargs, self.questions)
                    cache = in_place_cache(self.adapter.model, kwargs)
                    return generate(*args, **(kwargs if cache is None else kwargs | {"past_key_values": cache}))
                except ValueError as error:
                    if MISMATCH not in str(error):
                        raise
                    raise DataError(f"the images do not fit their places in the prompts: {error}") from error
                finally:
                    self._generating = False

        return checked

    def _forward(self, forward: Callable) -> Callable:
        @functools.wraps(forward)
        def begun(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                self._begin(self._given(args, kwargs))
                return forward(*args, **kwargs)

        return begun

    def _begin(self, given: dict[str, Any]) -> None:
        cache, ids = given.get("past_key_values"), given.get("input_ids")
        check_cache(cache)
        self._prefill = cache is None or cache.get_seq_length() == 0
        self._stages.forget()
        if self._window is not None and ids is not None:
            seen = 1 if cache is None or self._prefill else cache.get_seq_length()
            check_window(self._window, seen + ids.shape[1])
        if not self._prefill:
            check_continuation(self.adapter, given, self._cache)
            if given.get("position_ids") is None and self._prompt is not None:
                self._stages.uncounted = (~self._prompt.valid).sum(1, keepdim=True)
            return
        self._cache = cache
        self._prompt = read_prompt(self.adapter, given, self._needs_ids, self.sample_seeds)
        pixels = any(given.get(name) is not None for name in PIXELS)
        if self._before is not None and ids is not None and (pixels or not self._generating):
            self._before.announce(ids, given, self.questions)

    def _check_begun(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Refuses a prompt that came past `_begin`: it would be read with what the last one chose."""
        cache = kwargs.get("past_key_values")
        if self._prefill or isinstance(cache, StaticCache):
            return
        if cache is None or cache.get_seq_length() == 0:
            raise UnsupportedError(
                f"a prompt came to the {type(module).__name__} by itself; accepted: a call of the whole "
                f"{type(self.adapter.model).__name__}."
            )

    @property
    def _needs_ids(self) -> bool:
        return self.method.prunes_tokens or self.method.takes("edit_cache")

    def _given(self, args: tuple, kwargs: dict) -> dict[str, Any]:
        """The arguments of the forward by name, those that it takes by ** too."""
        given = dict(self._signature.bind_partial(*args, **kwargs).arguments)
        return given | given.pop("kwargs", {})

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """At the decoder's input: drop what was chosen before it, and count positions anew."""
        prompt = self._prompt
        if prompt is None or self._before is None or isinstance(kwargs.get("past_key_values"), StaticCache):
            return None
        if not self._prefill:
            return args, kwargs | (self._shifted(kwargs) if self._restarts else {})
        prompt.selection.take_over(self._before.watch)
        with prompt.selection.running(), torch.no_grad():
            keep, embeddings = self._before.choose(prompt, kwargs["inputs_embeds"])
            self._stages.begin(prompt, self._before.stage, keep)
        positions = {"position_ids": token_positions(keep.to(embeddings.device))} if self._restarts else {}
        return args, kwargs | {"inputs_embeds": embeddings} | positions

    def _shifted(self, kwargs: dict) -> dict[str, torch.Tensor]:
        """Positions of new tokens behind a prompt whose positions were counted anew at the decoder's input."""
        positions = kwargs.get("position_ids")
        if positions is None:
            new, past = kwargs["inputs_embeds"], kwargs["past_key_values"].get_seq_length()
            positions = torch.arange(past, past + new.shape[1], device=new.device)[None]
        positions = positions - self._stages.uncounted
        self._stages.uncounted = 0
        return {"position_ids": positions - self.shift}

    def _end(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """After the prefill: cut the caches of layers before a stage; give outputs a place per token of the prompt."""
        prompt, cache = self._prompt, output.past_key_values
        if not self._prefill or prompt is None:
            return None
        self._prefill = False
        if cache is None:
            raise UnsupportedError(NO_CACHE)
        check_cache(cache)
        self._cache = cache
        self._cut(prompt, cache)
        tensors = [
            (layer.keys, layer.values) if self.adapter.caches_text(module) else ()
            for module, layer in zip(self.layers, cache.layers, strict=True)
        ]
        prompt.kv_bytes_per_column = [sum(t.shape[1] * t.shape[3] * t.element_size() for t in own) for own in tensors]
        return self._outputs.whole(output, prompt)

    def _cut(self, prompt: Prompt, cache: Any) -> None:
        if not prompt.is_pruned:
            return
        size, layers = prompt.valid.shape[1], range(len(self.layers))
        cached = [prompt.cached(layer) for layer in layers]
        seen = [prompt.segment_of(layer).kept for layer in layers]
        steps = {(a, b): a.step_to(b, size) for a, b in dict.fromkeys(zip(seen, cached, strict=True))}
        shorten(cache, [steps[pair] for pair in zip(seen, cached, strict=True)], [size - k.width for k in cached])

    # --- inside the layers --------------------------------------------------------------------------------------------

    def _layer_begins(self, number: int) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            if self._prompt is None:
                return None
            if self._prefill:
                return self._stages.prefill(self._prompt, number, args, kwargs)
            if isinstance(kwargs.get("past_key_values"), StaticCache):
                return self._stages.static_step(number, args, kwargs)
            return self._stages.decode(self._prompt, number, args, kwargs)

        return hook

    def _observe(self, number: int) -> Callable:
        """Sees A, the input of `down_proj`, in the prefill."""

        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            prompt = self._prompt
            if not self._prefill or prompt is None:
                return None
            view = self._stages.view(prompt, number, args[0].detach())
            if not self.method.takes("neurons"):
                return None
            with prompt.selection.running(), torch.no_grad():
                chosen = self._checked_neurons(self._by_layer[number], view, args[0])
            if not (number in self._stages.scored or self.method.takes("edit_cache")):
                self._stages.drop_view()  # a layer's activations are not kept beyond it where nothing reads them again
            prompt.neurons[number] = chosen
            self._ffn[number].prepare(chosen, prompt.gathering)
            first = self.method.prefill_neurons_from()
            if first is None or number < first:
                return None
            return (args[0] * membership(chosen, args[0].shape[-1])[:, None], *args[1:]), kwargs

        return hook

    def _checked_neurons(self, method: Method, view: LayerView, activations: torch.Tensor) -> torch.Tensor:
        chosen, rows, size = method.neurons(view), len(activations), activations.shape[-1]
        count = method.neuron_count(size)
        if chosen.dtype != torch.int64 or chosen.dim() != 2 or len(chosen) not in (1, rows) or chosen.shape[1] != count:
            raise UnsupportedError(
                f"{self.method.label} chose neurons {chosen.dtype} {tuple(chosen.shape)}; "
                f"accepted: int64 [{rows} or 1, {count}]."
            )
        return chosen

    def _edit_cache(self, number: int) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            if self._prefill and self._prompt is not None:
                self.method.edit_cache(self._stages.last_view(self._prompt, number, kwargs["past_key_values"]))

        return hook
