"""Greedy decoding by one step that is the same for every prompt: captured as a CUDA graph, or called as it is.

Prompts differ in the content of buffers that never move (`static_buffers`, and the core rows that a session copied), so
none compiles or captures anything, and the step serves dense and sparse models alike. The prefill is the model's own
forward, under the session's hooks if there is one.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from coremat.checks import whole_number
from coremat.decoding.static_buffers import AsyncCopy, Step, StepBuffers, captured
from coremat.errors import ConfigError, UnsupportedError
from coremat.models.adapter import Adapter
from coremat.models.families import adapter_for
from coremat.runtime.decode_groups import DecodeGroup
from coremat.runtime.kept_tokens import KeptTokens
from coremat.runtime.masks import backend_of
from coremat.runtime.session import Session, session_of
from coremat.tensors import token_positions

BUCKET = 64  # slots of a cache are a multiple of this, so that prompts of about one length share it
AHEAD = 4  # steps that are launched before tokens are looked at, where launching does not wait for the device
VARIANTS = 64  # compiled steps that may be there at a time: for other models, sessions, batches, sizes of the cache

OnToken = Callable[[torch.Tensor], object]


class GraphDecoder:
    """Greedy answers of up to `max_new_tokens` for batches of `batch_size`, from a dense or a sparse model.

    session: that of the `coremat.apply` block that the model is in, or None outside of one.
    capture: replay the step as a CUDA graph; "auto" does where all that it reads is on one CUDA device.
    compile_step: fuse the step by `torch.compile` first; another backend of it may be given in place of True.

    The cache has room for the columns that a prefill keeps and `max_new_tokens`. It is made for the first prompt and
    stays; a prompt that needs more room makes a larger one and another capture. So does what moves the memory that the
    graph reads: a session that begins or ends (it lays out weights anew), or a session's workspace that grew.
    Sampling, beams and logits processors are left to the model's own `generate`.
    """

    def __init__(
        self,
        model: Any,
        session: Session | None,
        max_new_tokens: int,
        batch_size: int = 1,
        capture: bool | str = "auto",
        compile_step: bool | str | Callable = False,
    ) -> None:
        whole_number("max_new_tokens", max_new_tokens, least=1)
        whole_number("batch_size", batch_size, least=1)
        self.model, self.session = model, session
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self._adapter = session.adapter if session else adapter_for(model)
        why = why_unsupported(self._adapter)
        if why is not None:
            raise UnsupportedError(f"{type(model).__name__} has no static step: {why}; accepted: its own generate.")
        self._decoder = self._adapter.decoder
        self._embed, self._head = model.get_input_embeddings(), model.get_output_embeddings()
        _check_attention(self._decoder.config._attn_implementation)
        self._weights = self._weights_read()
        self._captures = _captures(capture, {weight.device for weight in self._weights})
        self._materialises = self._captures or bool(compile_step)
        self._step = _compiled(self._plain_step, compile_step) if compile_step else self._plain_step
        self._graph: torch.cuda.CUDAGraph | None = None
        self._captured_at: tuple[int, ...] = ()
        self._buffers: StepBuffers | None = None
        self._made = 0

    def generate(
        self,
        inputs: dict[str, Any],
        max_new_tokens: int,
        eos_token_id: int | Sequence[int] | None = None,
        on_token: OnToken | None = None,
    ) -> torch.Tensor:
        """`prefill`, then `decode`."""
        _check_new_tokens(max_new_tokens, self.max_new_tokens)
        self.prefill(inputs)
        return self.decode(max_new_tokens, eos_token_id, on_token)

    @torch.inference_mode(False)  # what is allocated in inference mode cannot be written to outside of it
    @torch.no_grad()
    def prefill(self, inputs: dict[str, Any]) -> None:
        """Read a prompt, as a processor makes it (padded on the left, if at all), and choose the first new token."""
        if session_of(self.model) is not self.session:
            raise ConfigError("the model is not in the block that the decoder was made for; make one for each block.")
        self._made = 0
        given, valid = self._read(inputs)
        position = token_positions(valid)
        out = self.model(**given, position_ids=position, use_cache=True, logits_to_keep=1)
        groups = self.session.groups if self.session else [self._one_group(valid)]
        shift = self.session.shift if self.session else 0
        kv, logits, position = out.past_key_values, out.logits[:, -1], position[..., -1:] - shift
        buffers = self._room(kv, groups, logits, position)
        buffers.load(kv, groups, logits, position)
        kv.layers.clear()  # the session holds on to this cache; its memory need not wait for the next prompt
        self._made = 1

    @torch.inference_mode(False)
    @torch.no_grad()
    def decode(
        self,
        max_new_tokens: int,
        eos_token_id: int | Sequence[int] | None = None,
        on_token: OnToken | None = None,
    ) -> torch.Tensor:
        """The first new tokens, int64 [B, at most `max_new_tokens`], of the prompt read last.

        eos_token_id: what ends a row, which is padded from there on; None: nothing does.
        on_token: gets every column [B], on the CPU and in order; from a graph up to 2 * AHEAD - 1 steps late.
        """
        _check_new_tokens(max_new_tokens, self.max_new_tokens)
        given = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id or ())
        ends = torch.tensor(given, dtype=torch.int64)
        padding = self.model.generation_config.pad_token_id
        padding = next(iter(given), 0) if padding is None else padding
        going = torch.ones(self.batch_size, dtype=torch.bool)
        answer: list[torch.Tensor] = []
        for column in self._columns(max_new_tokens):
            answer.append(torch.where(going, column, padding))
            if on_token is not None:
                on_token(answer[-1])
            going &= ~torch.isin(column, ends)
            if not going.any():
                break
        return torch.stack(answer, 1).to(self.buffers.new.device)

    @property
    def buffers(self) -> StepBuffers:
        """What the last step read and wrote, its logits among them."""
        if self._buffers is None or self._made == 0:
            raise ConfigError("no prompt was read; call prefill first.")
        return self._buffers

    # --- a prompt -----------------------------------------------------------------------------------------------

    def _read(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], torch.Tensor]:
        """The inputs of the prefill, without a mask that hides nothing, and which columns are tokens: bool [B, S]."""
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        if len(ids) != self.batch_size:
            raise ConfigError(
                f"the batch has {len(ids)} rows; accepted: {self.batch_size}, as the decoder was made for."
            )
        valid = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        there = valid.cpu()
        if not there[:, -1].all():
            raise UnsupportedError("the prompts are padded on the right; accepted: padding on the left.")
        given = {name: value for name, value in inputs.items() if name != "attention_mask"}
        return given if there.all() else inputs, valid

    def _one_group(self, valid: torch.Tensor) -> DecodeGroup:
        return DecodeGroup(tuple(range(len(self._adapter.layers))), KeptTokens.whole(valid), None)

    def _room(
        self, kv: Any, groups: Sequence[DecodeGroup], logits: torch.Tensor, position: torch.Tensor
    ) -> StepBuffers:
        """Buffers with room for the prompt and the answer: those that are there, if they will do."""
        slots, window = max(group.kept.width for group in groups) + self.max_new_tokens, self._adapter.window
        if window is not None and slots > window:
            raise UnsupportedError(
                f"prompt and new tokens are {slots} together; accepted by the static step: up to {window}, the sliding "
                "window of this model."
            )
        if self._buffers is None or not self._buffers.fit(groups, slots):
            self._forget_graph()
            self._buffers = None  # before the larger one is allocated
            slots = min(-(-slots // BUCKET) * BUCKET, window or sys.maxsize)  # no layer may have fewer than others
            shapes = kv, groups, slots, self.max_new_tokens, logits, position
            self._buffers = StepBuffers(self._decoder.config, *shapes)
        return self._buffers

    # --- one step -----------------------------------------------------------------------------------------------

    def _plain_step(self, buffers: StepBuffers) -> None:
        """Feed one token and choose the next. This is what is compiled and captured: no Python value in it changes."""
        embeddings, masks = self._embed(buffers.token), buffers.masks()
        if self.session is not None and len(masks) > 1:
            self.session.give_layers(masks, self._rotary(buffers, embeddings), [g.layers for g in buffers.groups])
        out = self._decoder(
            inputs_embeds=embeddings,
            attention_mask=masks[0],
            position_ids=buffers.position,
            past_key_values=buffers.cache,
            use_cache=True,
        )
        buffers.accept(self._head(out.last_hidden_state[:, -1]))

    def _rotary(self, buffers: StepBuffers, embeddings: torch.Tensor) -> list[dict[Any, Any] | None]:
        """For each group rotary tables by kind of layer, where its tokens have positions of their own."""
        return [
            None if group.shift is None else self._turned(group.layers, buffers.position - group.shift, embeddings)
            for group in buffers.groups
        ]

    def _turned(self, layers: Sequence[int], positions: torch.Tensor, embeddings: torch.Tensor) -> dict[Any, Any]:
        tables: dict[Any, Any] = {}
        for number in layers:
            layer = self._adapter.layers[number]
            kind = self._adapter.rotary_kind(layer)
            if kind not in tables:
                tables[kind] = self._adapter.rotary(layer, embeddings, positions)
        return tables

    def _columns(self, wanted: int) -> Iterator[torch.Tensor]:
        """New tokens [B], in order. A graph is launched again before its last tokens are looked at, so that the device
        has work meanwhile and an end is seen late, by a few steps; plain steps are made one by one, as they are needed.
        """
        copy, read = AsyncCopy(self.buffers.new), 0
        while read < wanted:
            copy.send()
            ready = min(self._made, wanted)
            if self._captures:
                self._launch(min(AHEAD, self._made, wanted - self._made))
            yield from copy.receive()[:, read:ready].unbind(1)
            read = ready
            if not self._captures:
                self._launch(min(1, wanted - self._made))

    def _launch(self, steps: int) -> None:
        if steps > 0 and self._made == 1:
            self._materialise()
        for _ in range(steps):
            self._step(self.buffers) if self._graph is None else self._graph.replay()
            self._made += 1

    # --- where steps must not differ ----------------------------------------------------------------------------

    def _materialise(self) -> None:
        """Before the first step of a prompt. A plain step may still choose to spare a copy that short answers waste."""
        if self.session is not None and self._materialises:
            self.session.materialise()
        if self._captures and (self._graph is None or self._captured_at != self._addresses()):
            self._forget_graph()
            self._graph, self._captured_at = captured(self._step, self.buffers), self._addresses()

    def _forget_graph(self) -> None:
        if self._graph is not None:
            torch.cuda.synchronize(self._decoder.device)  # steps beyond an end may still be under way
            self._graph = None

    def _weights_read(self) -> list[torch.Tensor]:
        """What a step reads beside buffers and workspace. FFNs that the session replaces are the session's concern."""
        sparse = self.session is not None and self.session.method.replaces_ffns
        ffns = [self._adapter.ffn(layer) for layer in self._adapter.layers] if sparse else []
        apart = {id(weight) for ffn in ffns for weight in ffn.parameters()}
        read = [w for module in (self._embed, self._decoder, self._head) for w in module.parameters()]
        return [weight for weight in read if id(weight) not in apart]

    def _addresses(self) -> tuple[int, ...]:
        """Tells whether what a graph reads has moved: weights by their addresses, a workspace by its growth."""
        workspace = 0 if self.session is None else self.session.workspace_bytes
        return (workspace, *(weight.data_ptr() for weight in self._weights))


def why_unsupported(adapter: Adapter) -> str | None:
    """Why the static step cannot decode a model of this family; None if it can."""
    if not adapter.plain_positions:
        return "its positions have several axes"
    if not all(adapter.caches_text(layer) for layer in adapter.layers):
        return "some of its layers attend to images outside the sequence"
    return None


def _compiled(step: Step, backend: bool | str | Callable) -> Step:
    name = "inductor" if isinstance(backend, bool) else backend
    fused = torch.compile(step, backend=name, fullgraph=True, dynamic=False)

    def run(buffers: StepBuffers) -> None:
        with torch._dynamo.config.patch(recompile_limit=VARIANTS):  # all decoders share the code, and so its limit
            fused(buffers)

    return run


def _check_new_tokens(number: int, most: int) -> None:
    whole_number("max_new_tokens", number, least=1)
    if number > most:
        raise ConfigError(
            f"max_new_tokens is {number}; accepted: a whole number, 1 to {most}, which the decoder was made for."
        )


def _check_attention(implementation: object) -> None:
    if backend_of(implementation) == "flash":
        raise UnsupportedError(f"attention is {implementation!r}, which takes no mask; accepted here: sdpa, eager.")


def _captures(capture: bool | str, devices: set[torch.device]) -> bool:
    """Whether to capture, given the devices of all that a step reads."""
    if capture not in (True, False, "auto"):
        raise ConfigError(f"capture is {capture!r}; accepted: auto, true, false.")
    able = len(devices) == 1 and all(device.type == "cuda" for device in devices)
    if capture is True and not able:
        names = ", ".join(sorted(map(str, devices)))
        raise UnsupportedError(f"capture is on, and the model is on {names}; accepted: one CUDA device, or auto.")
    return able and capture is not False
