"""The rectangles that an image's tokens form: by hand, from each family's own processor, and token by token."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from processors import inputs_of
from test_families import BATCHES, FAMILIES, tiny

from coremat.errors import DataError
from coremat.models.families import adapter_for

ONE = (1, 1)


def grids_of(model: Any, inputs: dict[str, Any], **changes: Any) -> list:
    others = {name: value for name, value in inputs.items() if name != "input_ids"}
    return adapter_for(model).image_grids(inputs["input_ids"], others | changes)


def tokens_of_images(model: Any, ids: torch.Tensor) -> list[int]:
    index = adapter_for(model).visual_index(ids)
    return [int((row == image).sum()) for row in index for image in range(int(row.max()) + 1)]


@pytest.mark.parametrize(("name", "batch"), BATCHES)
def test_every_image_has_its_rectangles_and_they_add_up(name, batch):
    inputs = FAMILIES[name].batch(batch)
    grids = grids_of(tiny(name), inputs)
    assert [sum(map(prod, one)) for one in grids] == tokens_of_images(tiny(name), inputs["input_ids"])
    assert (batch == "no image" or not FAMILIES[name].tokens) == (not grids)


# --- by hand ------------------------------------------------------------------------------------------------------

TILED, WIDE = ((2, 2), (4, 2 + 1)), ((2, 2), (2, 4 + 1))
QWEN = [((4, 3),), ((2, 4),), ((4, 3),), ((4, 3),)]
TILES = [((2, 2),) * count for count in (5, 3, 5, 5)]
LEFT_PADDED = {
    "llava": [((4, 4),)] * 4,
    "gemma3": [((4, 4),)] * 4,
    "llava_next": [TILED, WIDE, TILED, TILED],
    "llava_onevision": [TILED, WIDE, ((2, 2), ONE), ((2, 2), ONE)],
    "video_llava": [((2, 2),)] * 4,
    "mllama": [],
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN,
    "internvl": TILES,
    "idefics3": TILES,
    "smolvlm": TILES,
} | {name: [] for name, family in FAMILIES.items() if not family.images}
VIDEO = {
    "llava_onevision": [(ONE, ONE, ONE, ONE, ONE)],
    "video_llava": [(ONE, (2, 2)) * 4],
    "qwen2_vl": [((4, 2), (4, 2))],
    "qwen2_5_vl": [((4, 2), (4, 2))],
    "qwen3_vl": [((4, 2),), ((4, 2),)],
    "internvl": [((2, 2),)] * 3,
    "smolvlm": [((2, 2),)] * 3,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_rectangles_of_a_batch_row_by_row(name):
    assert grids_of(tiny(name), FAMILIES[name].batch("left-padded")) == LEFT_PADDED[name]


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if "video" in family.batches])
def test_rectangles_of_a_video(name):
    assert grids_of(tiny(name), FAMILIES[name].batch("video")) == VIDEO[name]


def row_of(name: str, *parts: tuple[str, int]) -> torch.Tensor:
    """One prompt: (attribute of the config with an id, how often); "" is a word."""
    ids = [[getattr(tiny(name).config, kind, 30)] * times for kind, times in parts]
    return torch.tensor([list(chain(*ids))])


def test_images_with_nothing_between_them_count_as_one():
    ids = row_of("llava_next", ("image_token_id", 30), ("", 1))
    grids = grids_of(tiny("llava_next"), {"input_ids": ids, "image_sizes": [[56, 40], [28, 56]]})
    assert grids == [TILED + WIDE]


def test_videos_with_nothing_between_them_count_as_one():
    ids = row_of("llava_onevision", ("video_token_id", 6), ("", 1))
    inputs = {"input_ids": ids, "pixel_values_videos": torch.zeros(2, 2, 3, 28, 28)}
    assert grids_of(tiny("llava_onevision"), inputs) == [(ONE, ONE, ONE) * 2]


def test_images_and_videos_are_counted_apart():
    parts = [("video_token_id", 2), ("", 1), ("image_token_id", 12), ("", 1), ("video_token_id", 4), ("", 1)]
    inputs = {"image_grid_thw": [[1, 4, 12]], "video_grid_thw": torch.tensor([[1, 2, 4], [2, 4, 2]])}
    grids = grids_of(tiny("qwen2_vl"), {"input_ids": row_of("qwen2_vl", *parts), **inputs})
    assert grids == [((1, 2),), ((2, 6),), ((2, 1), (2, 1))]


def test_one_view_of_each_image_only_where_the_model_is_told_how_many_there_are():
    inputs = FAMILIES["llava_onevision"].batch("several images")
    with pytest.raises(DataError, match="5 tokens in its prompt and 16 by its size"):
        grids_of(tiny("llava_onevision"), inputs, batch_num_images=None)


def with_class_token(name: str) -> Any:
    config = deepcopy(tiny(name).config)
    config.vision_feature_select_strategy = "full"
    return type(tiny(name))(config)


@pytest.mark.parametrize(("name", "side"), [("llava", 4), ("video_llava", 2)])
def test_a_class_token_that_is_kept_stands_before_its_image(name, side):
    ids = row_of(name, ("image_token_id", side**2 + 1), ("", 1))
    assert grids_of(with_class_token(name), {"input_ids": ids}) == [(ONE, (side, side))]


# --- what is refused ----------------------------------------------------------------------------------------------

QWENS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
OF_IMAGES = {"llava_next": "image_sizes", "llava_onevision": "image_sizes"} | dict.fromkeys(QWENS, "image_grid_thw")
OF_VIDEOS = {"llava_onevision": "pixel_values_videos"} | dict.fromkeys(QWENS, "video_grid_thw")


@pytest.mark.parametrize(("name", "batch"), BATCHES)
def test_only_what_tells_a_shape_is_needed(name, batch):
    needed = {"no image": {}, "video": OF_VIDEOS}.get(batch, OF_IMAGES).get(name)
    alone = {"input_ids": FAMILIES[name].batch(batch)["input_ids"]}
    if needed is None:
        assert grids_of(tiny(name), alone) == grids_of(tiny(name), FAMILIES[name].batch(batch))
        return
    with pytest.raises(DataError, match=f"no {needed} came with them; accepted: all that the processor returns"):
        grids_of(tiny(name), alone)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ([[1, 8, 4]], "more images or videos than the inputs tell sizes of"),
        ([[1, 8, 8]], "an image or video has 12 tokens in its prompt and 16 by its size; accepted: as many"),
    ],
)
def test_sizes_that_are_not_the_prompts(sizes, words):
    with pytest.raises(DataError, match=words):
        grids_of(tiny("qwen2_vl"), FAMILIES["qwen2_vl"].batch("one"), image_grid_thw=torch.tensor(sizes))


# --- from processors ------------------------------------------------------------------------------------------------


def cutting(name: str, side: int, patch: int) -> Any:
    """A model whose tower sees `side` pixels, and which cuts pictures into as many tiles as the released ones."""
    config = deepcopy(tiny(name).config)
    config.vision_config.image_size, config.vision_config.patch_size = side, patch
    multiples = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3), (6, 6)]
    config.image_grid_pinpoints = [[side, side], *([rows * side, columns * side] for rows, columns in multiples)]
    with torch.device("meta"):
        return type(tiny(name))(config)


TILED_BY_HAND = {
    # 640 x 480 in two by two tiles of 24 x 24: all of the width, three quarters of the height (40.5 rows of 54 below)
    ("llava_next", 336, (480, 640)): ((24, 24), (36, 48 + 1)),
    # one by two tiles: 448 of 672 pixels are not padding
    ("llava_next", 336, (300, 400)): ((24, 24), (24, 32 + 1)),
    ("llava_next", 336, (1000, 200)): ((24, 24), (72, 14 + 1)),
    ("llava_onevision", 384, (480, 640)): ((27, 27), (40, 54 + 1)),
    # six by six tiles of 27 x 27 are 162 x 162, four times as many as nine tiles have: made half as wide and high
    ("llava_onevision", 384, (2304, 2304)): ((27, 27), (81, 81 + 1)),
}


@pytest.mark.parametrize(("name", "side", "size"), TILED_BY_HAND)
def test_tiles_of_pictures_as_their_processor_counts_them(name, side, size):
    model = cutting(name, side, 14)
    inputs = inputs_of(model.config, np.zeros((*size, 3), dtype=np.uint8))
    assert grids_of(model, inputs) == [TILED_BY_HAND[name, side, size]]


@pytest.mark.parametrize(("name", "view"), [("llava_next", 24), ("llava_onevision", 27)])
def test_tokens_of_pictures_of_many_shapes_are_those_that_their_processor_writes(name, view):
    """As many tokens as in the released models, of fewer pixels."""
    model, random = cutting(name, 2 * view, 2), np.random.default_rng(0)
    for size in random.integers(20, 400, (40, 2)):
        inputs = inputs_of(model.config, np.zeros((*size, 3), dtype=np.uint8))
        ((whole, tiles),) = grids_of(model, inputs)
        assert whole == (view, view)
        assert prod(tiles) == tokens_of_images(model, inputs["input_ids"])[0] - view**2


def test_a_wide_picture_for_qwen():
    """1920 x 1080 in patches of 14, by two: 68.6 columns and 38.6 rows, rounded."""
    config = deepcopy(tiny("qwen2_vl").config)
    config.vision_config.patch_size = 14
    with torch.device("meta"):
        model = type(tiny("qwen2_vl"))(config)
    assert grids_of(model, inputs_of(config, np.zeros((1080, 1920, 3), dtype=np.uint8))) == [((39, 69),)]


# --- which token is where -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sight:
    """What a rectangle shows: this part of the picture (top, left, bottom, right, as shares), of these frames.

    newline: whether its last column shows nothing.
    """

    part: tuple[float, float, float, float] = (0, 0, 1, 1)
    frames: slice | None = None
    newline: bool = False


WHOLE = Sight()
QUARTERS = [Sight((top, left, top + 0.5, left + 0.5)) for top in (0, 0.5) for left in (0, 0.5)]
FRAMES = [Sight(frames=slice(frame, frame + 1)) for frame in range(4)]
PAIRS = [Sight(frames=slice(frame, frame + 2)) for frame in (0, 2)]
NOTHING = None

# Family, the shape of the picture or video, and what each rectangle shows.
SIGHTS = [
    ("llava", (56, 56), [WHOLE]),
    ("gemma3", (56, 56), [WHOLE]),
    ("video_llava", (28, 28), [WHOLE]),
    ("llava_next", (28, 56), [WHOLE, Sight(newline=True)]),
    ("llava_next", (56, 28), [WHOLE, Sight(newline=True)]),
    ("llava_onevision", (28, 56), [WHOLE, Sight(newline=True)]),
    ("qwen2_vl", (24, 48), [WHOLE]),
    ("qwen2_5_vl", (24, 48), [WHOLE]),
    ("qwen3_vl", (24, 48), [WHOLE]),
    ("internvl", (112, 112), [*QUARTERS, WHOLE]),
    ("idefics3", (112, 112), [*QUARTERS, WHOLE]),
    ("smolvlm", (112, 112), [*QUARTERS, WHOLE]),
    ("llava_onevision", (4, 28, 28), [*FRAMES, NOTHING]),
    ("video_llava", (4, 28, 28), [one for frame in FRAMES for one in (NOTHING, frame)]),
    ("qwen2_vl", (4, 16, 32), PAIRS),
    ("qwen2_5_vl", (4, 16, 32), PAIRS),
    ("qwen3_vl", (4, 16, 32), PAIRS),
    ("internvl", (4, 56, 56), FRAMES),
]


def spotted(picture: np.ndarray, sight: Sight, cell: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """The picture with that cell of what the rectangle shows made white."""
    top, left, bottom, right = sight.part
    height, width = picture.shape[-3:-1]
    tall, wide = height * (bottom - top) / grid[0], width * (right - left) / grid[1]
    above, before = round(height * top + cell[0] * tall), round(width * left + cell[1] * wide)
    white = picture.copy()
    seen = white if sight.frames is None else white[sight.frames]
    seen[..., above : round(above + tall), before : round(before + wide), :] = 255
    return white


def embeddings(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the decoder gets for the image tokens of one prompt, [N, H]."""
    seen = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    return seen[0][adapter_for(model).visual_tokens(inputs["input_ids"])]


def placed(grids: list, sights: list) -> Iterator[tuple[Sight, tuple[int, int], tuple[int, int], range, int]]:
    """Every cell that shows something: its sight, its place, its grid, the tokens of its rectangle, its own token."""
    begin = 0
    for (rows, columns), sight in zip(chain(*grids), sights, strict=True):
        shown = columns - (sight.newline if sight else columns)
        for row, column in np.ndindex(rows, shown):
            tokens = range(begin, begin + rows * columns)
            yield sight, (row, column), (rows, shown), tokens, begin + row * columns + column
        begin += rows * columns


def check_places(model: Any, shape: tuple[int, ...], sights: list) -> None:
    """With one cell made white, the token that changes most is the one that stands for it: of its rectangle or, in a
    video, of all."""
    picture = np.full((*shape, 3), 90, dtype=np.uint8)
    inputs = inputs_of(model.config, picture)
    before = embeddings(model, inputs)
    for sight, cell, grid, tokens, token in placed(grids_of(model, inputs), sights):
        after = embeddings(model, inputs_of(model.config, spotted(picture, sight, cell, grid)))
        change = (after - before).norm(dim=1)
        among = range(len(change)) if sight.frames else tokens
        assert max(among, key=change.__getitem__) == token, (cell, grid)


@pytest.mark.parametrize(("name", "shape", "sights"), SIGHTS)
def test_a_spot_on_the_picture_is_seen_by_the_token_at_its_place(name, shape, sights):
    check_places(tiny(name), shape, sights)


def test_a_spot_on_a_pooled_frame_is_seen_by_the_token_at_its_place():
    """Frames of 6 x 6 patches, which make 3 x 3 tokens; those of the tiny model make one."""
    config = deepcopy(tiny("llava_onevision").config)
    config.vision_config.image_size = 84
    torch.manual_seed(0)
    model = type(tiny("llava_onevision"))(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    check_places(model, (4, 84, 84), [*FRAMES, NOTHING])
