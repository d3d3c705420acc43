"""What the rest of coremat may know of a model family. One subclass per family, in the file of its `model_type`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from coremat.errors import DataError, UnsupportedError
from coremat.ffn.gathered import streamed
from coremat.hooks import Hooks
from coremat.models.grids import Grids, Tile, count_tokens, images_of, taken
from coremat.models.image_views import ImageViews, plain_views
from coremat.models.resizable_towers import ResizableTower
from coremat.models.shape import ATTENTION, FFN, DecoderShape
from coremat.tensors import take

FFN_PARTS = (*FFN, "act_fn")
Rotary = tuple[torch.Tensor, torch.Tensor]
WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Adapter(ABC):
    """Where things are in one model. Refuses, when made, a model that is not shaped as its family should be."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._check_decoder()

    @property
    def decoder(self) -> Any:
        """The module that runs the loop over decoder layers."""
        return self.model.get_decoder()

    @property
    def core(self) -> Any:
        """The module that takes prompts and images and runs the decoder: the model without its output head."""
        return self.model.model

    @property
    def layers(self) -> Sequence[Any]:
        return self.decoder.layers

    def ffn(self, layer: Any) -> Any:
        """The gated FFN of a layer: `gate_proj`, `up_proj`, `down_proj` and `act_fn`."""
        return layer.mlp

    def attention(self, layer: Any) -> Any:
        """The attention of a layer, over the sequence or over images beside it."""
        return layer.cross_attn if hasattr(layer, "cross_attn") else layer.self_attn

    def linears(self, layer: Any) -> dict[str, Any]:
        """The matrices of a layer by name, of `coremat.models.shape.LINEARS`; those that `check_linears` lets pass."""
        attention, ffn = self.attention(layer), self.ffn(layer)
        return {name: getattr(owner, name) for owner, names in ((attention, ATTENTION), (ffn, FFN)) for name in names}

    # --- what is refused ----------------------------------------------------------------------------------------

    def _check_decoder(self) -> None:
        if self.model.config.get_text_config().is_encoder_decoder:
            raise UnsupportedError(
                f"the text model of {type(self.model).__name__} has an encoder beside its decoder; "
                "accepted: a decoder alone."
            )

    def check_ffns(self) -> None:
        """UnsupportedError for FFNs whose neurons cannot be pruned: no gate, quantised, wrapped or shared weights."""
        owners: dict[int, str] = {}
        for number, layer in enumerate(self.layers):
            place = f"layer {number} of {type(self.model).__name__}"
            mlp = getattr(layer, "mlp", None)
            missing = [part for part in FFN_PARTS if not hasattr(mlp, part)]
            if missing:
                raise UnsupportedError(
                    f"{place} ({type(self.decoder).__name__}) has no "
                    f"{', '.join(missing)} in its mlp; a gated FFN with {', '.join(FFN_PARTS)} is needed."
                )
            for name in FFN:
                _check_projection(getattr(mlp, name), f"{name} in {place}", owners)

    def check_linears(self) -> None:
        """UnsupportedError for layers of which a matrix is missing, fused with another, quantised, wrapped or shared,
        and for weights that are on their device in the prefill only."""
        self.check_ffns()
        owners: dict[int, str] = {}
        for number, layer in enumerate(self.layers):
            place, attention = f"layer {number} of {type(self.model).__name__}", self.attention(layer)
            missing = [name for name in ATTENTION if not hasattr(attention, name)]
            if missing:
                raise UnsupportedError(
                    f"{place} has no {', '.join(missing)} in its {type(attention).__name__}; accepted: attention with "
                    f"{', '.join(ATTENTION)}, each a Linear of its own."
                )
            for name, linear in self.linears(layer).items():
                _check_projection(linear, f"{name} in {place}", owners)
            _check_resident(self.ffn(layer), self.linears(layer), place)

    @property
    def tokens_unsupported(self) -> str | None:
        """Why this family's image tokens cannot be pruned, as a sentence; None where they can."""
        return None

    @property
    def window(self) -> int | None:
        """Tokens that the layers with a sliding window see; None where every layer sees all."""
        return None

    # --- vision -------------------------------------------------------------------------------------------------

    takes_images = True  # False for models of text alone, which have a tokenizer in place of a processor
    takes_videos = False  # so do the processor and the chat template of some families

    @property
    @abstractmethod
    def vision(self) -> tuple[Any, ...]:
        """The modules between an image and its tokens: the vision tower, and the projector, which runs last; none in a
        model of text alone."""

    @property
    def vision_layers(self) -> Sequence[Any] | None:
        """The tower's layers, where each has a `self_attn` with `q_proj`, `k_proj` and `num_heads` over a class token
        and the patches; None for other towers."""
        return None

    @property
    def provides(self) -> frozenset[str]:
        """What methods may say that they need (`Method.needs`) and not every family has."""
        there = {"class token": self.vision_layers is not None, "resizable tower": bool(self.resizable_towers)}
        return frozenset(name for name, found in there.items() if found)

    @property
    def resizable_towers(self) -> Sequence[ResizableTower]:
        """The vision towers, images' first, as what takes smaller pictures; () where what comes behind a tower mixes
        places that are no square of patches."""
        return ()

    @property
    def feature_layer(self) -> int:
        """Which of `vision_layers` gives what the projector gets, as an index from the end."""
        return -1

    @property
    def image_tokens(self) -> int | None:
        """Tokens of every image, row by row over a square; None where that differs from image to image."""
        return None

    # --- tokens -------------------------------------------------------------------------------------------------

    @property
    def plain_positions(self) -> bool:
        """Whether a token's position is one number that may be counted anew."""
        return True

    def visual_tokens(self, input_ids: torch.Tensor) -> torch.Tensor:
        """bool [B, S]: which tokens stand for a piece of an image or video."""
        config = self.model.config
        visual, video = input_ids == config.image_token_id, getattr(config, "video_token_id", None)
        return visual if video is None else visual | (input_ids == video)

    def visual_index(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Which image of its sequence each token belongs to: int64 [B, S], -1 for text and padding.

        By counting where all images have as many tokens; else every run of one placeholder is an image.
        """
        visual = self.visual_tokens(input_ids)
        if self.image_tokens is not None:
            return _by_count(visual, self.image_tokens)
        begins = visual.clone()
        begins[:, 1:] &= input_ids[:, 1:] != input_ids[:, :-1]
        return torch.where(visual, begins.cumsum(1) - 1, -1)

    def image_grids(self, input_ids: torch.Tensor, inputs: Mapping[str, Any]) -> list[Grids]:
        """The rectangles (rows, columns) that the tokens of each image or video form, in the order of its tokens.

        input_ids: [B, S]; inputs: the other arguments of the model's `generate` or `forward`; neither repeated for
        beams. Row by row, and in each row in the order of `visual_index`. DataError where the tokens in the prompts are
        not those that the inputs make, or an input is missing that tells the shape of an image.
        """
        ids, config = input_ids.cpu(), self.model.config
        pieces = {
            config.image_token_id: iter(self.image_pieces(inputs)),
            getattr(config, "video_token_id", None): iter(self.video_pieces(inputs)),
        }
        return [taken(tokens, pieces[kind]) for kind, tokens in images_of(ids, self.visual_index(ids))]

    @abstractmethod
    def image_pieces(self, inputs: Mapping[str, Any]) -> Iterable[Grids]:
        """The rectangles of each piece (an image, or a tile where all tiles are alike) that stands for the image
        placeholder, in the order of the prompts; endless where no piece differs from another."""

    def image_tiles(self, input_ids: torch.Tensor, inputs: Mapping[str, Any]) -> list[tuple[Tile, ...]]:
        """What the tower sees of each image, in the order in which it sees it, of families with `vision_layers`;
        arguments as of `image_grids`, which has found that they fit each other."""
        ids = input_ids.cpu()
        pieces = zip(self.image_pieces(inputs), self.piece_tiles(inputs), strict=False)
        return [_tiles_of(tokens, pieces) for _, tokens in images_of(ids, self.visual_index(ids))]

    def piece_tiles(self, inputs: Mapping[str, Any]) -> Iterable[tuple[Tile, ...]]:
        """The tiles of each of `image_pieces`."""
        return ()

    def video_pieces(self, inputs: Mapping[str, Any]) -> Iterable[Grids]:
        """The same for the video placeholder, of families that have one."""
        return ()

    def image_views(self, grids: Sequence[Grids], inputs: Mapping[str, Any]) -> list[ImageViews]:
        """The views that the tokens of each image or video come from. grids: of `image_grids`, with the same inputs."""
        return [plain_views(own) for own in grids]

    def narrow_additions(self, hooks: Hooks, kept: Callable[[], torch.Tensor | None]) -> None:
        """Let what the decoder adds between its layers be cut to the tokens that are left.

        kept: their columns, int64 [B, K]; None while the layers hold the whole prompt.
        """
        return None  # most decoders add nothing

    # --- attention ----------------------------------------------------------------------------------------------

    def queries(self, layer: Any, hidden: torch.Tensor, rotary: Rotary, columns: torch.Tensor) -> torch.Tensor:
        """The rotated queries of some tokens, [B, heads, q, d].

        hidden: the layer's attention input [B, T, H]; rotary: cosine and sine [B or 1, T, d]; columns: int64 [B, q].
        """
        return _rotated(
            layer.self_attn, "q", take(hidden, columns, 1), tuple(take(part, columns, 1) for part in rotary)
        )

    def keys(self, layer: Any, hidden: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """The rotated keys of all tokens, [B, kv_heads, T, d], where the layer itself has not run yet."""
        return _rotated(layer.self_attn, "k", hidden, rotary)

    def rotary(self, layer: Any, hidden: torch.Tensor, positions: torch.Tensor) -> Rotary:
        """Cosine and sine for positions that were counted anew, int64 [B, T], as this layer takes them."""
        return self.decoder.rotary_emb(hidden, positions)

    def rotary_kind(self, layer: Any) -> str | None:
        """Tells apart the layers that take other rotary tables for the same positions."""
        return None

    def scaling(self, layer: Any) -> float:
        return layer.self_attn.scaling

    def output_projection(self, layer: Any) -> torch.Tensor:
        """W_O [H, heads * d]."""
        return layer.self_attn.o_proj.weight

    def caches_text(self, layer: Any) -> bool:
        """Whether a layer's cache has the columns of the prompt, and not those of something else."""
        return True

    @property
    def shape(self) -> DecoderShape:
        return DecoderShape.of(self.decoder.config)


def _rotated(attention: Any, name: str, hidden: torch.Tensor, rotary: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Queries or keys: normalised head by head, where they are, and then rotated (halves swapped)."""
    projected = getattr(attention, f"{name}_proj")(hidden).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    if hasattr(attention, f"{name}_norm"):
        projected = getattr(attention, f"{name}_norm")(projected)
    cos, sin = (part[:, None].to(projected.dtype) for part in rotary)
    first, second = projected.chunk(2, dim=-1)
    return projected * cos + torch.cat((-second, first), dim=-1) * sin


def _check_projection(linear: Any, place: str, owners: dict[int, str]) -> None:
    """owners: the projections seen before, by the identity of their weights."""
    weight = getattr(linear, "weight", None)
    dtype = getattr(weight, "dtype", None)
    if not isinstance(linear, nn.Linear) or dtype not in WEIGHT_TYPES:
        accepted = ", ".join(str(t).removeprefix("torch.") for t in WEIGHT_TYPES)
        raise UnsupportedError(
            f"{place} is a {type(linear).__name__} with weights of {dtype}; "
            f"accepted: a Linear of {accepted}, neither quantised nor wrapped."
        )
    if owners.setdefault(id(weight), place) != place:
        raise UnsupportedError(f"{place} shares its weights with {owners[id(weight)]}; accepted: weights of its own.")


def _tiles_of(tokens: int, pieces: Iterator[tuple[Grids, tuple[Tile, ...]]]) -> tuple[Tile, ...]:
    """Of an image of `tokens` tokens: one piece, or several where images with nothing between them count as one."""
    tiles: tuple[Tile, ...] = ()
    found = 0
    while found < tokens:
        grids, own = next(pieces)
        tiles += tuple(replace(tile, tokens=tile.tokens + found) for tile in own)
        found += count_tokens(grids)
    return tiles


def _check_resident(ffn: Any, linears: Mapping[str, Any], place: str) -> None:
    if streamed(ffn) or any(hasattr(linear, "_hf_hook") for linear in linears.values()):
        raise UnsupportedError(
            f"weights of {place} are offloaded; accepted by a method that prunes the inputs of Linears: weights that "
            "stay on their device."
        )


def _by_count(visual: torch.Tensor, per_image: int) -> torch.Tensor:
    counts = visual.sum(1)
    if (counts % per_image).any():
        raise DataError(
            f"a prompt has {int(counts[counts % per_image > 0][0])} image tokens; "
            f"accepted: a multiple of {per_image}, the tokens of one image."
        )
    return torch.where(visual, (visual.cumsum(1) - 1) // per_image, -1)


def clip_layers(model: Any) -> Any:
    """The layers of a CLIP tower, which has a class token; None for another tower."""
    if getattr(model.config.vision_config, "model_type", "") != "clip_vision_model":
        return None
    tower = model.model.vision_tower
    return getattr(tower, "vision_model", tower).encoder.layers


def refuse_window(window: int | None) -> None:
    """For families whose released models see everything in every layer."""
    if window is not None:
        raise UnsupportedError(f"the text model has a sliding window of {window}; only full attention is supported.")


def refuse_sliding_layers(config: Any) -> None:
    """The same where the config names the layers that have one."""
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    refuse_window(config.sliding_window if sliding else None)
