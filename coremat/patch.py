"""`with coremat.apply(model, config) as session:` makes a Hugging Face model sparse, and dense again on the way out.

All of it is hooks on the unmodified model; no weight changes its value. While a prompt is read (the KV cache is
empty), the input of each `down_proj` gives the votes for core neurons; at layer `prune_layer - 1` it gives the core
tokens, and from the next layer on only they and the text go further. When the prompt has been read, the first layers'
cache is cut to the same columns. While decoding, each FFN multiplies with its core rows only (`coremat.engine`).
Choosing waits for the device once: the scores of the choosing layer come over, the columns that stay go back.
"""

import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import StaticCache

from coremat.config import SparsityConfig
from coremat.core_neurons import core_neurons, membership
from coremat.core_tokens import core_neuron_counts
from coremat.engine import SparseFFN, check_backend, make_ffn
from coremat.engine.layout import neuron_major
from coremat.entry import Entry
from coremat.errors import ConfigError, UnsupportedError
from coremat.masks import backend_of, decode_mask, narrow_prefill
from coremat.models import Adapter, adapter_for
from coremat.projection import attention_row, attention_scores, projection_values
from coremat.prompt import Columns, Prompt, SequenceStats
from coremat.reader import NO_CACHE, check_continuation, guarded, read_prompt
from coremat.released import Release
from coremat.selection import DRAWN, random_neurons, voting
from coremat.short_cache import check_cache, shorten, take
from coremat.undo import replace_method
from coremat.votes import votes
from coremat.window import check_window

_sessions: "weakref.WeakKeyDictionary[nn.Module, Session]" = weakref.WeakKeyDictionary()


@contextmanager
def apply(model: nn.Module, config: SparsityConfig | None = None, backend: str = "auto") -> Iterator["Session"]:
    """Run `model` sparsely inside the block. Yields the `Session`, whose `stats` describe the last prompt.

    backend: how core neurons are computed, one of `coremat.engine.BACKENDS`. Raises UnsupportedError for a model
    without an adapter or a backend that cannot run it, ConfigError for a layer it has not or a model in use.
    """
    session = Session(adapter_for(model), config or SparsityConfig(), backend)
    if model in _sessions:
        raise ConfigError(f"this {type(model).__name__} is already inside coremat.apply; leave that block first.")
    with ExitStack() as undo:
        _sessions[model] = session
        undo.callback(_sessions.pop, model)
        session._install(undo)
        yield session


def check(model: nn.Module, config: SparsityConfig) -> None:
    """Raises what `apply` would, and leaves the model alone."""
    Session(adapter_for(model), config)


def session_of(model: nn.Module) -> "Session | None":
    """The session of the block that this model is in."""
    return _sessions.get(model)


def _counted(there: torch.Tensor) -> torch.Tensor:
    """Positions of the tokens that are there, bool [B, S]; of the others any."""
    return (there.cumsum(1) - 1).clamp(min=0)


class Session:
    """One model made sparse. `sample_seeds` (one int per sequence) replaces the seeds of random choices if given."""

    def __init__(self, adapter: Adapter, config: SparsityConfig, backend: str = "auto") -> None:
        self.adapter, self.config = adapter, config
        self.layers = list(adapter.layers)
        if config.prunes_tokens and adapter.token_hindrance is not None:
            raise UnsupportedError(adapter.token_hindrance)
        self._entry = Entry(adapter, config) if config.before_decoder else None
        self._release = Release(adapter) if config.released else None
        if config.prunes_tokens and config.prune_layer >= len(self.layers):
            raise ConfigError(
                f"prune_layer is {config.prune_layer}; accepted for this model of {len(self.layers)} decoder layers: "
                f"1 to {len(self.layers) - 1}."
            )
        self.sample_seeds: Sequence[int] | None = None
        check_backend(backend)
        ffns = [adapter.ffn(layer) for layer in self.layers] if config.prunes_neurons else []
        self._ffn = [make_ffn(mlp, backend, config) for mlp in ffns]
        self._signature = inspect.signature(adapter.model.forward)
        self._prompt: Prompt | None = None
        self._prefill = False
        self._cache: Any = None
        self._query: torch.Tensor | None = None
        self._held: torch.Tensor | None = None
        self._window = adapter.window if config.prunes_tokens else None

    @property
    def stats(self) -> list[SequenceStats]:
        """One entry per sequence of the last prefill (with beams: per beam); empty before the first."""
        if self._prompt is None:
            return []
        full = self.config.prune_layer if self._prompt.columns else len(self.layers)
        return self._prompt.stats(self.adapter.shape, len(self.layers), full)

    @property
    def workspace_bytes(self) -> int:
        """Memory that holds the core rows."""
        return sum(ffn.bytes for ffn in self._ffn)

    @property
    def live(self) -> torch.Tensor:
        """bool [B, K]: which columns of the cache that the last prefill left are tokens, not padding or fillers."""
        if self._prompt is None:
            raise ConfigError("no prompt was read in this block yet; let the model read one first.")
        return self._prompt.there()[0]

    @property
    def ffn_share(self) -> float:
        """Share of the FFNs' rows that a decode step needs for at least one sequence of the last prompt."""
        sets = self._prompt.neurons.values() if self._prompt else ()
        size = self.adapter.shape.ffn
        shares = [len(core.unique()) / size for core in sets]
        return sum(shares) / len(shares) if shares else 1.0

    def settle(self) -> None:
        """After a prefill: from here on every decode step runs the same code on the same buffers."""
        for ffn in self._ffn:
            ffn.settle()

    # --- installing ---------------------------------------------------------------------------------------

    def _install(self, undo: ExitStack) -> None:
        config, adapter = self.config, self.adapter
        add = undo.callback
        replace_method(adapter.model, "generate", guarded(adapter.model.generate, adapter, self._window), undo)
        undo.enter_context(adapter.narrowing(lambda: self._held))
        add(adapter.model.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
        add(adapter.decoder.register_forward_hook(self._end).remove)
        if self._release is not None:
            self._release.install(undo)
        if self._entry is not None:
            self._entry.install(undo)
            add(adapter.decoder.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
        for number, layer in enumerate(self.layers):
            add(layer.register_forward_pre_hook(self._layer_hook(number), with_kwargs=True).remove)
            chooses = config.prunes_tokens and number == config.prune_layer - 1
            if chooses and config.token_score in ("attention", "projection"):
                add(layer.self_attn.register_forward_pre_hook(self._query_hook(layer), with_kwargs=True).remove)
            if chooses or config.prunes_neurons:
                down = adapter.ffn(layer).down_proj
                add(down.register_forward_pre_hook(self._observer(number, chooses)).remove)
            if config.prunes_neurons:
                undo.enter_context(neuron_major(adapter.ffn(layer)))
                self._swap_forward(adapter.ffn(layer), self._ffn[number], undo)

    def _swap_forward(self, mlp: nn.Module, sparse: SparseFFN, undo: ExitStack) -> None:
        """Decode steps take the core rows; the prefill takes whatever forward was there."""
        dense = mlp.forward

        def forward(x: torch.Tensor) -> torch.Tensor:
            return dense(x) if self._prefill else sparse(x)

        replace_method(mlp, "forward", forward, undo)

    # --- a forward pass begins ------------------------------------------------------------------------------

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = self._given(args, kwargs)
        cache, ids = given.get("past_key_values"), given.get("input_ids")
        check_cache(cache)
        self._prefill = cache is None or cache.get_seq_length() == 0
        self._held = None
        if self._window is not None and ids is not None:
            seen = 1 if cache is None or self._prefill else cache.get_seq_length()
            check_window(self._window, seen + ids.shape[1])
        if self._prefill:
            self._cache = cache
            self._prompt = read_prompt(self.adapter, self.config, given, self.sample_seeds)
            if self._release is not None:
                self._release.prompt = self._prompt
        else:
            check_continuation(self.adapter, given, self._cache)

    def _given(self, args: tuple, kwargs: dict) -> dict[str, Any]:
        """The arguments of the model's forward by name, those that it takes by ** too."""
        given = dict(self._signature.bind_partial(*args, **kwargs).arguments)
        return given | given.pop("kwargs", {})

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """At the decoder's door: drop what was chosen before it, and count positions anew."""
        prompt = self._prompt
        if prompt is None or self._entry is None or isinstance(kwargs.get("past_key_values"), StaticCache):
            return None
        if not self._prefill:
            shifted = {"position_ids": kwargs["position_ids"] - self.shift} if self._reindexes else {}
            return args, kwargs | shifted
        with prompt.selection.running(), torch.no_grad():
            keep, held = self._entry.choose(prompt, kwargs["inputs_embeds"])
            prompt.keep_only(keep)
        positions = {"position_ids": _counted(prompt.keep.to(held.device))} if self._reindexes else {}
        return args, kwargs | {"inputs_embeds": held} | positions

    @property
    def _reindexes(self) -> bool:
        return self.config.before_decoder and self.config.positions != "original" and self.adapter.plain_positions

    @property
    def shift(self) -> torch.Tensor | int:
        """How much earlier each sequence's new tokens come than `generate` counts: [B, 1], or 0."""
        if self._prompt is None or not self._reindexes:
            return 0
        return (self._prompt.valid.sum(1) - self.live.sum(1))[:, None]

    def _end(self, module: nn.Module, args: tuple, output: Any) -> None:
        """After the prefill: cut the first layers' cache to the columns that the others have."""
        prompt, cache = self._prompt, output.past_key_values
        if not self._prefill or prompt is None:
            return
        self._prefill = False
        if self._release is not None:
            self._release.prompt = None
        if cache is None:
            raise UnsupportedError(NO_CACHE)
        check_cache(cache)
        self._cache = cache
        if prompt.columns is not None:
            index = prompt.columns.index
            shorten(cache, index, self.config.prune_layer, dropped=prompt.valid.shape[1] - index.shape[1])
        of_text = [
            kept for layer, kept in zip(self.layers, cache.layers, strict=True) if self.adapter.caches_text(layer)
        ]
        tensors = [t for kept in of_text for t in (kept.keys, kept.values)]
        prompt.kv_bytes_per_column = sum(t.shape[1] * t.shape[3] * t.element_size() for t in tensors)

    # --- inside the layers: the columns that are left ---------------------------------------------------------

    def _layer_hook(self, number: int) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            if not self._prefill and isinstance(kwargs.get("past_key_values"), StaticCache):
                return None  # it brings its own mask (`coremat.graph_decode`), and nothing here may differ by prompt
            columns = self._prompt.columns if self._prompt else None
            if self._prompt is None or columns is None:
                return None
            if self._prefill:
                return self._narrow(columns, args, kwargs) if number >= self.config.prune_layer else None
            if not self._prompt.hides:
                return None
            new = args[0].shape[1]
            width = kwargs["past_key_values"].layers[number].keys.shape[2] + new
            return args, kwargs | {"attention_mask": decode_mask(columns.live, width, new, *self._attention)}

        return hook

    def _narrow(self, columns: Columns, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Prefill behind the pruning layer: hidden states, positions and mask of the columns that stay."""
        index = columns.index
        size = kwargs["position_embeddings"][0].shape[1]
        hidden = args[0] if self._held is index else take(args[0], index, 1)
        self._held = index
        rotary = tuple(take(t, index, 1) for t in kwargs["position_embeddings"])
        narrowed: dict[str, Any] = {"position_embeddings": rotary}
        if kwargs.get("position_ids") is not None:
            narrowed["position_ids"] = take(kwargs["position_ids"], index, 1)
        mask = narrow_prefill(kwargs.get("attention_mask"), columns, size, *self._attention)
        return (hidden, *args[1:]), kwargs | narrowed | {"attention_mask": mask}

    @property
    def _attention(self) -> tuple[str, torch.dtype]:
        """The attention backend and the dtype of its masks."""
        return backend_of(self.adapter.decoder.config._attn_implementation), self.adapter.model.dtype

    # --- inside the layers: choosing --------------------------------------------------------------------------

    def _query_hook(self, layer: nn.Module) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if self._prefill:
                hidden = args[0] if args else kwargs["hidden_states"]
                self._query = self.adapter.last_query(layer, hidden, kwargs["position_embeddings"])
                self._cache = kwargs["past_key_values"]

        return hook

    def _observer(self, number: int, chooses_tokens: bool) -> Callable:
        """Sees A, the input of `down_proj`, in the prefill."""

        def hook(module: nn.Module, args: tuple) -> tuple | None:
            prompt, activations = self._prompt, args[0].detach()
            if not self._prefill or prompt is None:
                return None
            with prompt.selection.running(), torch.no_grad():
                chosen = self._choose(prompt, number, activations, chooses_tokens)
            if chosen is None:
                return None
            prompt.neurons[number] = chosen
            self._ffn[number].prepare(chosen, prompt.gathering)
            if self.config.neurons_in_prefill and number >= self.config.prune_layer:
                return (args[0] * membership(chosen, activations.shape[-1])[:, None],)
            return None

        return hook

    def _choose(self, prompt: Prompt, number: int, activations: torch.Tensor, tokens: bool) -> torch.Tensor | None:
        """Choose tokens, if this is the layer for it, and return this layer's neurons [B, m], if they are pruned."""
        config, size = self.config, activations.shape[-1]
        counted = None
        if tokens or config.neurons == "core":
            valid, visual = prompt.there()
            counted = votes(activations, config.alpha, voting(config.voters, valid, visual))
        if tokens and counted is not None:
            own = core_neurons(counted, config.beta)
            counts = core_neuron_counts(activations, membership(own, size))
            prompt.narrow_to(config, counts, self._scores(prompt, counts, number))
        if config.neurons in DRAWN:
            return random_neurons(config, prompt.seeds, number, size).to(activations.device)
        if config.neurons != "core" or counted is None:
            return None
        return core_neurons(counted.sum(0, keepdim=True) if config.neuron_sets == "batch" else counted, config.beta)

    def _scores(self, prompt: Prompt, counts: torch.Tensor, number: int) -> torch.Tensor | None:
        """[B, S], larger is kept first; None for random ones."""
        name = self.config.token_score
        if name in ("core-neurons", "fewest-core-neurons"):
            return counts if name == "core-neurons" else -counts
        if name == "random" or self._query is None:
            return None
        layer, cached = self.layers[number], self._cache.layers[number]
        weights = attention_row(self._query, cached.keys, prompt.valid, self.adapter.scaling(layer))
        if name == "attention":
            return attention_scores(weights)
        return projection_values(weights, cached.values, self.adapter.output_projection(layer))
