"""A dummy image as a model of each family takes it: what it is in a prompt, and what the vision tower computes for it.

It is the image that `coremat bench` shows. Towers of one size see it at that size. Models that cut images into tiles
see one of twice the side, as four tiles and a view of the whole (Llama 3.2: four tiles). Models that take any size see
what makes 24 x 24 tokens, as many as LLaVA-1.5's images have. Video-LLaVA sees a video of eight frames. Models of text
alone see none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from coremat.errors import UnsupportedError
from coremat.models.families import takes_images

FRAMES = 8
GRID = 24  # tokens a side, where any size may be chosen
VIEWS = (2, 2)  # rows and columns of tiles


@dataclass(frozen=True)
class TowerPass:
    """What runs for one image. tower, projector: names of modules of the model; tiles: how often the tower runs.

    patches: of a tile. tokens: of a tile in the tower's layers, a class token and padding among them. seen: for each
    layer, the tokens that one token attends to. width: of the attention. projected: tokens that leave the projector.
    """

    tower: str
    projector: tuple[str, ...]
    tiles: int
    patches: int
    tokens: int
    seen: tuple[int, ...]
    width: int
    projected: int


@dataclass(frozen=True)
class DummyImage:
    """placeholder: the id that stands for it in a prompt, `places` times; tokens: image tokens that the decoder gets.

    pixels: name and shape of the model's input for one image. numbers: whole inputs beside it, for one image.
    mark: the input that is 1 at its tokens. cross_keys: keys that cross-attention layers have of it.
    """

    placeholder: int
    places: int
    pixels: tuple[str, tuple[int, ...]]
    run: TowerPass
    numbers: Mapping[str, list] = field(default_factory=dict)
    mark: str | None = None
    cross_keys: int = 0

    @property
    def tokens(self) -> int:
        return 0 if self.cross_keys else self.places


def dummy_image(config: Any) -> DummyImage | None:
    """From a Hugging Face config; None for a model of text alone. UnsupportedError for a family that is not here, or
    another tower than it has."""
    if not takes_images(config):
        return None
    if config.model_type not in DUMMY_IMAGES:
        raise UnsupportedError(f"model type is {config.model_type!r}; counted are {', '.join(DUMMY_IMAGES)}.")
    return DUMMY_IMAGES[config.model_type](config)


def _side(size: Any) -> int:
    return size[0] if isinstance(size, (list, tuple)) else size


def _patches(vision: Any) -> int:
    return (_side(vision.image_size) // _side(vision.patch_size)) ** 2


def _square(
    config: Any, tiles: int, projected: int, tower: str = "vision_tower", projector: str = "multi_modal_projector"
) -> TowerPass:
    """A tower of one size; projected: tokens of each tile."""
    vision = config.vision_config
    patches = _patches(vision)
    tokens = patches + (vision.model_type in WITH_CLASS_TOKEN)
    return TowerPass(
        tower=f"model.{tower}",
        projector=(f"model.{projector}",),
        tiles=tiles,
        patches=patches,
        tokens=tokens,
        seen=(tokens,) * vision.num_hidden_layers,
        width=vision.hidden_size,
        projected=tiles * projected,
    )


WITH_CLASS_TOKEN = ("clip_vision_model", "internvl_vision")
TOWERS = (*WITH_CLASS_TOKEN, "siglip_vision_model")


def _features(config: Any) -> int:
    """Tokens of one view that go to the projector, in the LLaVA families."""
    vision = config.vision_config
    if vision.model_type not in TOWERS:
        raise UnsupportedError(f"the vision tower is {vision.model_type!r}; counted are {', '.join(TOWERS)}.")
    keeps_class_token = config.vision_feature_select_strategy == "full" and vision.model_type in WITH_CLASS_TOKEN
    return _patches(vision) + keeps_class_token


def _pixels(config: Any, *before: int, name: str = "pixel_values") -> tuple[str, tuple[int, ...]]:
    vision = config.vision_config
    side = _side(vision.image_size)
    return name, (*before, vision.num_channels, side, side)


def _llava(config: Any) -> DummyImage:
    features = _features(config)
    return DummyImage(config.image_token_id, features, _pixels(config, 1), _square(config, 1, features))


def _any_resolution(config: Any) -> DummyImage:
    """LLaVA-NeXT and OneVision: the whole, then all tiles as one grid, with a newline behind each of its rows."""
    from transformers.image_processing_utils import select_best_resolution

    side, features = config.vision_config.image_size, _features(config)
    rows, columns = VIEWS
    height, width = select_best_resolution((rows * side, columns * side), config.image_grid_pinpoints)
    rows, columns = height // side, width // side
    of_side = int(features**0.5)
    places = features + rows * of_side * (columns * of_side + 1)
    tiles = 1 + rows * columns
    run = _square(config, tiles, features)
    return DummyImage(
        config.image_token_id, places, _pixels(config, 1, tiles), run, numbers={"image_sizes": [[height, width]]}
    )


def _video_llava(config: Any) -> DummyImage:
    """A video's frames keep their class tokens."""
    features = _patches(config.vision_config) + 1
    pixels = _pixels(config, 1, FRAMES, name="pixel_values_videos")
    run = _square(config, FRAMES, features, tower="video_tower")
    return DummyImage(config.video_token_id, FRAMES * features, pixels, run)


def _internvl(config: Any) -> DummyImage:
    """The tower's layers see a class token, which the projector does not."""
    tiles = 1 + VIEWS[0] * VIEWS[1]
    features = int(_patches(config.vision_config) * config.downsample_ratio**2)
    run = _square(config, tiles, features)
    return DummyImage(config.image_token_id, tiles * features, _pixels(config, tiles), run)


def _gemma3(config: Any) -> DummyImage:
    features = config.mm_tokens_per_image
    run = _square(config, 1, features)
    return DummyImage(config.image_token_id, features, _pixels(config, 1), run, mark="token_type_ids")


def _idefics3(config: Any) -> DummyImage:
    """Idefics3 and SmolVLM. The words between the tiles are text, and left out."""
    tiles = 1 + VIEWS[0] * VIEWS[1]
    features = _patches(config.vision_config) // config.scale_factor**2
    run = _square(config, tiles, features, tower="vision_model", projector="connector")
    return DummyImage(config.image_token_id, tiles * features, _pixels(config, 1, tiles), run)


def _qwen(config: Any) -> DummyImage:
    vision = config.vision_config
    side = GRID * vision.spatial_merge_size
    patches = side * side
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    mergers = ["merger", *["deepstack_merger_list"] * hasattr(vision, "deepstack_visual_indexes")]
    run = TowerPass(
        tower="model.visual",
        projector=tuple(f"model.visual.{name}" for name in mergers),
        tiles=1,
        patches=patches,
        tokens=patches,
        seen=_qwen_seen(vision, patches),
        width=getattr(vision, "embed_dim", vision.hidden_size),
        projected=GRID * GRID,
    )
    return DummyImage(
        config.image_token_id,
        GRID * GRID,
        ("pixel_values", (patches, values)),
        run,
        numbers={"image_grid_thw": [[1, side, side]]},
        mark="mm_token_type_ids",
    )


def _qwen_seen(vision: Any, patches: int) -> tuple[int, ...]:
    """Qwen2.5's tower attends within windows, in all layers but a few."""
    if not hasattr(vision, "window_size"):
        return (patches,) * vision.depth
    window = (vision.window_size // vision.patch_size) ** 2
    return tuple(patches if layer in vision.fullatt_block_indexes else window for layer in range(vision.depth))


def _mllama(config: Any) -> DummyImage:
    """All tiles attend to each other, each padded to a multiple of eight tokens."""
    vision = config.vision_config
    ratios = vision.supported_aspect_ratios
    best = max(ratios, key=lambda ratio: (ratio[0] * ratio[1], -abs(ratio[0] - ratio[1])))
    tiles, patches = vision.max_num_tiles, _patches(vision)
    tokens = -(-(patches + 1) // 8) * 8
    keys = tiles * (patches + 1)
    run = TowerPass(
        tower="model.vision_model",
        projector=("model.multi_modal_projector",),
        tiles=tiles,
        patches=patches,
        tokens=tokens,
        seen=(tiles * tokens,) * (vision.num_hidden_layers + vision.num_global_layers),
        width=vision.hidden_size,
        projected=keys,
    )
    numbers = {"aspect_ratio_ids": [[ratios.index(best) + 1]], "aspect_ratio_mask": [[[1] * tiles]]}
    return DummyImage(config.image_token_id, 1, _pixels(config, 1, 1, tiles), run, numbers, cross_keys=keys)


DUMMY_IMAGES: dict[str, Callable[[Any], DummyImage]] = {
    "llava": _llava,
    "llava_next": _any_resolution,
    "llava_onevision": _any_resolution,
    "video_llava": _video_llava,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "mllama": _mllama,
    "internvl": _internvl,
    "gemma3": _gemma3,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
}
