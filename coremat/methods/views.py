"""What a method sees of a batch: plain tensors, most of them made only when they are first read.

    LayerView   one decoder layer while it read the prompt: B sequences, of which T tokens each are present
    PromptView  the whole prompt as the decoder gets it: S tokens each
    ImageView   one image or video on its way to the decoder, or one tile of it: N places
    TowerView   one attention layer of the vision tower, for what the tower sees at once
    Question    what the prompt of an image says, as text and as the decoder's embeddings

Padding is in no result: scores of what is not `valid` are never read.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal

import torch

from coremat.errors import UnsupportedError
from coremat.methods.common.attention import attention_weights, class_attention

Voters = Literal["all", "text", "last"]
Rows = Literal["last"] | torch.Tensor
Area = tuple[Fraction, Fraction, Fraction, Fraction]
WHOLE: Area = (Fraction(0), Fraction(0), Fraction(1), Fraction(1))


class Lazy:
    """Values that are made once, when they are first asked for."""

    def __init__(self, parts: Mapping[str, Callable[[], Any]]) -> None:
        self._parts, self._made = dict(parts), dict[Any, Any]()

    def add(self, **parts: Callable[[], Any]) -> None:
        """What can be seen from now on."""
        self._parts.update(parts)

    def once(self, name: Any, make: Callable[[], Any]) -> Any:
        """The value of that name; `make` is called the first time only."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def part(self, name: str) -> Any:
        if name not in self._parts:
            raise UnsupportedError(f"{name} is read, which {type(self).__name__} has not here; {self.there}.")
        return self.once(name, self._parts[name])

    @property
    def there(self) -> str:
        return f"there are: {', '.join(sorted(self._parts)) or 'none'}"


class PromptView(Lazy):
    """A batch of prompts before any token of the decoder is pruned; what `once` makes is there for all its stages.

    valid: bool [B, S], False for padding. image_index: int64 [B, S], as in `LayerView`. parts: how the rest is made.
    """

    def __init__(self, valid: torch.Tensor, image_index: torch.Tensor, **parts: Callable[[], Any]) -> None:
        super().__init__(parts)
        self.valid, self.image_index = valid, image_index

    @property
    def inputs(self) -> torch.Tensor:
        """[B, S, H]: what the first decoder layer gets."""
        return self.part("inputs")

    @property
    def tail(self) -> int:
        """How many columns there are behind the last image token, the most of any sequence that has one; at least 1.

        All of them are text, which no stage prunes: they are the last columns of every layer too.
        """
        images = self.part("images_on_host") >= 0
        return max(1, int(images.flip(1).int().argmax(1).max()))


class LayerView(Lazy):
    """One decoder layer in the prefill.

    number: the layer, from 0. valid: bool [B, T], False for padding. image_index: int64 [B, T], the image of its
    sequence that each token belongs to, -1 for text and padding. state: what the method's `setup` returned. parts: how
    the properties below are made; `queries` takes columns, int64 [B, q].
    """

    def __init__(
        self,
        number: int,
        valid: torch.Tensor,
        image_index: torch.Tensor,
        queries: Callable[[torch.Tensor], torch.Tensor] | None = None,
        state: Any = None,
        **parts: Callable[[], Any],
    ) -> None:
        super().__init__(parts)
        self.number, self.valid, self.image_index, self._queries = number, valid, image_index, queries
        self.state = state

    def of(self, state: Any) -> "LayerView":
        """The same view, what was made for it included, for a part of a method that has this state."""
        view = copy.copy(self)
        view.state = state
        return view

    @property
    def image(self) -> torch.Tensor:
        """bool [B, T]: tokens of images and videos."""
        return self.image_index >= 0

    @property
    def text(self) -> torch.Tensor:
        """bool [B, T]: all other tokens, without padding."""
        return self.valid & ~self.image

    @property
    def activations(self) -> torch.Tensor:
        """[B, T, F]: the input of `down_proj`, A in the paper."""
        return self.part("activations")

    @property
    def down_norms(self) -> torch.Tensor:
        """float32 [F]: the l2 norm of each neuron's column of `down_proj`."""
        return self.part("down_norms")

    @property
    def hidden(self) -> torch.Tensor:
        """[B, T, H]: the layer's output."""
        return self.part("hidden")

    @property
    def keys(self) -> torch.Tensor:
        """[B, kv_heads, T, d], as cached: after the rotary embedding."""
        return self.part("keys")

    @property
    def values(self) -> torch.Tensor:
        """[B, kv_heads, T, d], as cached."""
        return self.part("values")

    @property
    def output_weight(self) -> torch.Tensor:
        """W_O [H, heads * d] of the layer's attention."""
        return self.part("output_weight")

    @property
    def rotary(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of the tokens' positions, [B or 1, T, d], as the layer's attention takes them."""
        return self.part("rotary")

    @property
    def prompt(self) -> PromptView:
        """The whole prompt: there for the scores of a stage."""
        return self.part("prompt")

    @property
    def seeds(self) -> Sequence[int]:
        """One number per sequence, for what is drawn at random: the same alone and in a batch."""
        return self.part("seeds")

    def attention(self, rows: Rows = "last") -> torch.Tensor:
        """Softmax weights of the layer's attention, float32 [B, heads, q, T], for q query tokens.

        rows: "last" (q = 1) or columns int64 [B, q]; a token attends to itself and to what stands before it (in Gemma 3
        image tokens also see each other forwards, which is left out here). Only these rows are computed.
        """
        if self._queries is None:
            raise UnsupportedError(f"attention is read, which {type(self).__name__} has not here.")
        if isinstance(rows, str):
            return self.once("last attention", lambda: self._attention(self.last_column))
        return self._attention(rows)

    @property
    def next_attention(self) -> torch.Tensor:
        """Softmax weights that the last token would have in the next layer, float32 [B, heads, 1, T]: there for the
        scores of a stage."""
        return self.part("next_attention")

    def _attention(self, columns: torch.Tensor) -> torch.Tensor:
        assert self._queries is not None
        there = torch.arange(self.valid.shape[1], device=self.valid.device)
        seen = self.valid[:, None] & (there <= columns[..., None])
        return attention_weights(self._queries(columns), self.keys, seen, self.part("scaling"))

    @property
    def last_column(self) -> torch.Tensor:
        """int64 [B, 1]: the column of each sequence's last token."""
        rows, width = self.valid.shape
        return torch.full((rows, 1), width - 1, device=self.valid.device)

    def voters(self, which: Voters) -> torch.Tensor:
        """bool [B, T]: "all" real tokens, the "text" ones, or the "last" one."""
        if which == "last":
            last = torch.zeros_like(self.valid)
            last[:, -1] = True
            return last
        return self.valid if which == "all" else self.text


@dataclass(frozen=True)
class TowerView:
    """queries, keys: [1 + places, heads, d], the class token first, or [places, heads, d] in a tower without one.
    visible: int64 [N], those of the places that are an image's own; the others are padding, which attention goes to and
    nothing keeps. None: all, N = places."""

    queries: torch.Tensor
    keys: torch.Tensor
    places: int
    visible: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("queries", "keys"):
            found = len(getattr(self, name))
            if found not in (self.places, self.places + 1):
                raise UnsupportedError(
                    f"the vision tower's attention has {found} {name} for {self.places} image tokens; "
                    f"accepted: {self.places}, or {self.places + 1} with a class token."
                )

    @property
    def patch_keys(self) -> torch.Tensor:
        """float32 [N, heads, d]."""
        keys = self.keys[-self.places :].float()
        return keys if self.visible is None else keys[self.visible]

    @property
    def one_head(self) -> "TowerView":
        """The same with all heads side by side as one."""
        queries, keys = (rows.flatten(1)[:, None] for rows in (self.queries, self.keys))
        return replace(self, queries=queries, keys=keys)

    def attention(self) -> torch.Tensor:
        """What the class token attends to, or, without one, what each patch receives: float32 [heads, N]."""
        weights = class_attention(self.queries, self.keys, self.places)
        return weights if self.visible is None else weights[:, self.visible]


class Question(Lazy):
    """What the prompt of an image says; the same object for all images of a sequence."""

    @property
    def text(self) -> str:
        """The question in words. ConfigError where the session was told none."""
        return self.part("text")

    @property
    def embeddings(self) -> torch.Tensor:
        """[q, H]: the decoder's embeddings of the text behind the sequence's last image, or, where none is, of all its
        text; there for `before_decoder`."""
        return self.part("embeddings")


@dataclass(frozen=True)
class ImageView:
    """grids: its rectangles of places, (rows, columns) each, in the order of the places; features: [N, C], what the
    projector gets (before it) or the decoder's embeddings (behind it); class_token: [C], at the same layer, None for
    towers without one; tower: the layers that the method asked for, by the index that it gave; state: what the
    method's `setup` returned; question: of its prompt; area: what part of the image it shows, top, left, bottom and
    right as shares of height and width; project: before the projector, what the projector makes of features [n, C]."""

    features: torch.Tensor
    grids: Sequence[tuple[int, int]] = ()
    class_token: torch.Tensor | None = None
    tower: Mapping[int, TowerView] = field(default_factory=dict)
    state: Any = None
    question: Question = field(default_factory=lambda: Question({}))
    area: Area = WHOLE
    project: Callable[[torch.Tensor], torch.Tensor] | None = None
