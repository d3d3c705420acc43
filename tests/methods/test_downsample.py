"""Downsampling against the models themselves, given the smaller picture by hand; and the sizes of pictures."""

from math import prod
from types import SimpleNamespace

import pytest
import torch
from equivalence import compare
from hypothesis import given
from hypothesis import strategies as st
from image_views import kept
from strategies import quick, seeded
from torch.nn import functional

import coremat
from coremat.errors import ConfigError, UnsupportedError
from coremat.methods.downsample import Downsample, same_shape
from coremat.models.image_views import plain_views
from coremat.models.resizable_towers import clip_towers, resized
from coremat.runtime.smaller_views import fit
from coremat.testing.answers import answer
from coremat.testing.dense_reference import merged_states
from coremat.testing.families import FAMILIES
from coremat.testing.families.family import IMAGE, VIDEO, WIDE
from coremat.testing.families.qwen import GRIDS, MERGE, PATCH

# Of each family and batch, at a budget: the rows and columns of each view, and the image tokens that stay.
WANTED = {
    ("llava", "one", 5): ([(2, 2)], [5, 7, 13, 15]),
    ("llava", "several images", 5): ([(1, 1), (1, 1)], [10, 26]),
    ("llava", "one", 0.5): ([(2, 2)], [5, 7, 13, 15]),
    ("llava", "one", 9): ([(3, 3)], [0, 2, 3, 8, 10, 11, 12, 14, 15]),
    ("gemma3", "one", 5): ([(2, 2)], [5, 7, 13, 15]),
    ("video_llava", "one", 3): ([(1, 1)], [3]),
    ("internvl", "one", 9): ([(1, 1)] * 5, [3, 7, 11, 15, 19]),
    ("idefics3", "one", 9): ([(1, 1)] * 5, [3, 7, 11, 15, 19]),
    ("smolvlm", "one", 9): ([(1, 1)] * 5, [3, 7, 11, 15, 19]),
    **{(qwen, "one", 5): ([(2, 2)], [3, 5, 9, 11]) for qwen in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")},
    **{(qwen, "video", 5): ([(2, 1)] * 2, [3, 7, 11, 15]) for qwen in ("qwen2_vl", "qwen2_5_vl")},
    ("qwen3_vl", "video", 5): ([(3, 1), (2, 1)], [1, 5, 7, 11, 15]),  # each frame is an image of its own
}


@torch.no_grad()
def reaching(model, inputs, tokens):
    """What the image tokens that stay are at the decoder's input, [K, H], and which they are."""
    with coremat.apply(model, Downsample(tokens=tokens)) as session, merged_states(session) as merged:
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
        where, hidden = merged[0]
        return hidden[where], list(session.stats[0].kept)


def smaller(pixels, height, width):
    return functional.interpolate(pixels, (height, width), mode="bicubic", align_corners=False, antialias=True)


def clip_by_hand(model, inputs, sizes):
    inner, name = model.model, "pixel_values_images" if "pixel_values_images" in inputs else "pixel_values"
    tower = inner.image_tower if hasattr(inner, "image_tower") else inner.vision_tower
    found = []
    for pixels, (rows, columns) in zip(inputs[name], sizes, strict=True):
        picture = smaller(pixels[None], 14 * rows, 14 * columns)
        seen = tower(picture, interpolate_pos_encoding=True, output_hidden_states=True)
        found.append(inner.multi_modal_projector(seen.hidden_states[-2][:, 1:])[0])
    return torch.cat(found)


def gemma_by_hand(model, inputs, sizes):
    """A token is the mean of a square of patches."""
    [(rows, columns)], inner = sizes, model.model
    vision, projector = model.config.vision_config, inner.multi_modal_projector
    side = vision.image_size // vision.patch_size // 4
    patch = vision.patch_size * side
    picture = smaller(inputs["pixel_values"], patch * rows, patch * columns)
    patches = inner.vision_tower(picture, interpolate_pos_encoding=True).last_hidden_state
    square = patches.view(rows, side, columns, side, -1).mean((1, 3)).flatten(0, 1)
    return projector.mm_soft_emb_norm(square) @ projector.mm_input_projection_weight


def tiles_by_hand(model, inputs, sizes):
    """InternVL, Idefics3 and SmolVLM take small tiles by themselves; their tokens are squares of patches, 28 pixels."""
    pixels = inputs["pixel_values"]
    small = smaller(pixels.flatten(0, -4), 28, 28).view(*pixels.shape[:-2], 28, 28)
    features = model.model.get_image_features(pixel_values=small).pooler_output
    return torch.cat(list(features)).view(len(sizes), -1)


def qwen_by_hand(model, inputs, sizes):
    """Patches are laid out as pictures one by one, and the smaller pictures cut into patches again."""
    name = "video" if "video_grid_thw" in inputs else "image"
    patches = inputs["pixel_values_videos" if name == "video" else "pixel_values"]
    [(_, rows, columns)] = inputs[f"{name}_grid_thw"].tolist()
    made = []
    for number, size in enumerate(sizes):
        own = patches[number * rows * columns : (number + 1) * rows * columns].view(-1, 3, 2, PATCH, PATCH)
        picture = torch.zeros(3, 2, rows * PATCH, columns * PATCH)
        for patch, (row, column) in zip(own, in_squares(rows, columns), strict=True):
            picture[:, :, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = patch
        tall, wide = size[0] * MERGE, size[1] * MERGE
        small = torch.stack([smaller(picture[:, frame][None], tall * PATCH, wide * PATCH)[0] for frame in (0, 1)], 1)
        made += [
            small[:, :, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH].flatten()
            for row, column in in_squares(tall, wide)
        ]
    grid = torch.tensor([[1, rows * MERGE, columns * MERGE] for rows, columns in sizes])
    return model.model.visual(torch.stack(made), grid_thw=grid)


def in_squares(rows, columns):
    """The patches (row, column) in the order of the processor: those of one token beside each other."""
    return [
        (row + down, column + right)
        for row in range(0, rows, MERGE)
        for column in range(0, columns, MERGE)
        for down in range(MERGE)
        for right in range(MERGE)
    ]


BY_HAND = {
    "gemma3": gemma_by_hand,
    **dict.fromkeys(("internvl", "idefics3", "smolvlm"), tiles_by_hand),
    **dict.fromkeys(("llava", "video_llava"), clip_by_hand),
    **{name: lambda *own: qwen_by_hand(*own).pooler_output for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")},
}


@pytest.mark.parametrize(("family", "batch", "tokens"), WANTED)
@torch.no_grad()
def test_the_decoder_gets_what_the_tower_makes_of_the_smaller_picture(family, batch, tokens):
    model, inputs = FAMILIES[family].model(), FAMILIES[family].batch(batch)
    sizes, places = WANTED[family, batch, tokens]
    found, stay = reaching(model, inputs, tokens)
    assert stay == places
    own = BY_HAND[family](model, inputs, sizes)
    torch.testing.assert_close(found, own, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_frame_of_video_llava_keeps_its_class_token():
    model, inputs = FAMILIES["video_llava"].model(), FAMILIES["video_llava"].batch("video")
    found, stay = reaching(model, inputs, 9)
    assert stay == [0, 4, 5, 9, 10, 14, 15, 19]
    inner, frames = model.model, smaller(inputs["pixel_values_videos"][0], 14, 14)
    seen = inner.video_tower(frames, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(found, inner.multi_modal_projector(seen).flatten(0, 1), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_tiles_of_llava_next_lose_their_padding_and_keep_newlines_of_rows_that_stay():
    """56 x 40 pixels: a view of 2 x 2 places, and 2 x 2 such tiles, whose columns 1 and 2 are not padding."""
    model, inputs = FAMILIES["llava_next"].model(), FAMILIES["llava_next"].batch("one")
    found, stay = reaching(model, inputs, 9)
    assert stay == [3, 7, 9, 13, 15]
    inner, views = model.model, smaller(inputs["pixel_values"][0], 14, 14)
    seen = inner.vision_tower(views, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states[-2]
    view, top, _, bottom, _ = inner.multi_modal_projector(seen[:, 1])
    wanted = torch.stack([view, top, inner.image_newline, bottom, inner.image_newline])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_images_with_nothing_between_them_have_views_of_their_own():
    """For LLaVA-NeXT they count as one: 16 tokens of 2 x 2 tiles, and 14 of 1 x 2, whose rows have 4 places."""
    family = FAMILIES["llava_next"]
    model, inputs = family.model(), family.inputs([[1, IMAGE, WIDE, 31]], torch.float32)
    found, stay = reaching(model, inputs, 10)
    assert stay == [3, 7, 9, 13, 15, 19, 26, 28, 29]
    inner, views = model.model, smaller(inputs["pixel_values"][1, :3], 14, 14)
    seen = inner.vision_tower(views, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states[-2]
    wanted = torch.cat([inner.multi_modal_projector(seen[:, 1]), inner.image_newline[None]])
    torch.testing.assert_close(found[5:], wanted, atol=1e-5, rtol=1e-4)
    assert reaching(model, inputs, 8)[1] == [0, 1, 2, 3, 16, 17, 18, 19]
    assert reaching(model, inputs, 1)[1] == [19]


def test_a_budget_below_all_tiles_shows_the_whole_view():
    model, inputs = FAMILIES["llava_next"].model(), FAMILIES["llava_next"].batch("one")
    assert reaching(model, inputs, 4)[1] == [0, 1, 2, 3]
    assert reaching(model, inputs, 3)[1] == [3]


@torch.no_grad()
def test_what_the_decoder_adds_between_its_layers_is_of_the_smaller_picture():
    """Qwen3-VL's DeepStack."""
    model, inputs = FAMILIES["qwen3_vl"].model(), FAMILIES["qwen3_vl"].batch("one")
    wanted = qwen_by_hand(model, inputs, [(2, 2)]).deepstack_features
    with coremat.apply(model, "downsample:tokens=5"):
        found = []
        handle = model.model.visual.register_forward_hook(lambda module, args, output: found.append(output))
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
        handle.remove()
    for own, images in zip(wanted, found[0].deepstack_features, strict=True):
        [layer] = images
        assert len(layer) == prod(GRIDS[IMAGE]) // MERGE**2
        torch.testing.assert_close(layer[[3, 5, 9, 11]], own, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_padding_inside_a_tile_stays_hidden_from_the_tower():
    """The right half of each tile is padding: 4 x 4 patches, of which the smaller tile has 2 x 2."""
    model, inputs = FAMILIES["idefics3"].model(), FAMILIES["idefics3"].batch("one")
    inputs["pixel_attention_mask"][..., 28:] = 0
    small = smaller(inputs["pixel_values"][0], 28, 28)[None]
    mask = torch.ones(1, 5, 28, 28, dtype=torch.int64)
    mask[..., 14:] = 0
    wanted = model.model.get_image_features(pixel_values=small, pixel_attention_mask=mask).pooler_output[0]
    torch.testing.assert_close(reaching(model, inputs, 9)[0], wanted, atol=1e-5, rtol=1e-4)


def test_the_tower_does_less(model):
    inputs, seen = FAMILIES["llava"].batch("one"), []
    with coremat.apply(model, "downsample:tokens=5"):
        layer = model.model.vision_tower.encoder.layers[0]
        handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
        handle.remove()
    assert seen == [1 + 4]


@pytest.mark.parametrize("tokens", [1.0, 16, 999])
def test_with_room_for_all_tokens_the_picture_is_as_it_was(model, tokens):
    inputs = FAMILIES["llava"].batch("one")
    with coremat.apply(model, Downsample(tokens=tokens)):
        sparse = answer(model, inputs)
    assert torch.equal(sparse.logits, answer(model, inputs).logits)


@pytest.mark.parametrize("tokens", [1, 5, 0.6])
def test_positions_are_counted_anew_as_in_the_masked_dense_model(model, errors, tokens):
    for positions in ("auto", "original"):
        method = Downsample(tokens=tokens, positions=positions)
        compare(model, FAMILIES["llava"].batch("left-padded"), method, errors, f"downsample {tokens} {positions}")


def test_beside_neurons_of_another_method(model, errors):
    compare(model, FAMILIES["llava"].batch("one"), "downsample:tokens=5+core-neurons", errors, "downsample, neurons")


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "budget", "wanted"),
    [
        ((24, 24), 64, (8, 8)),
        ((24, 24), 80, (8, 8)),  # not 8 x 10
        ((24, 24), 576, (24, 24)),
        ((24, 24), 3, (1, 1)),
        ((10, 20), 50, (5, 10)),
        ((20, 10), 50, (10, 5)),
        ((1, 50), 7, (1, 7)),
        ((4, 3), 4, (2, 2)),
    ],
)
def test_the_size_for_a_budget(grid, budget, wanted):
    assert next(size for size in same_shape(grid) if prod(size) <= budget) == wanted


@quick
@given(st.integers(1, 30), st.integers(1, 30))
def test_sizes_are_those_next_to_the_shape(rows, columns):
    wanted = set()
    for tall in range(1, rows + 1):
        for wide in range(1, columns + 1):
            beside = abs(tall * columns - wide * rows) < rows, abs(wide * rows - tall * columns) < columns
            if any(beside) or (wide == 1 and tall * columns <= rows) or (tall == 1 and wide * rows <= columns):
                wanted.add((tall, wide))
    found = same_shape((rows, columns))
    assert set(found) <= wanted
    assert {prod(size) for size in found} == {prod(size) for size in wanted}
    assert found[0] == (rows, columns)
    assert found[-1] == (1, 1)
    assert [prod(size) for size in found] == sorted({prod(size) for size in found}, reverse=True)


def test_fewer_frames_where_one_token_each_is_too_many():
    views = plain_views(((2, 2),) * 6)
    sizes, keep = fit(views, same_shape((2, 2)), 3)
    assert sizes == (None, (1, 1), None, (1, 1), None, (1, 1))
    assert kept(keep) == [7, 15, 23]


def test_no_class_token_where_there_is_room_for_one_token_only():
    views = plain_views(((1, 1), (2, 2), (1, 1), (2, 2)))
    assert kept(fit(views, same_shape((2, 2)), 2)[1]) == [5, 9]  # the second frame: its class token, and one place
    assert kept(fit(views, same_shape((2, 2)), 1)[1]) == [9]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_pixels_are_resized_exactly_and_keep_their_type(dtype):
    pixels = torch.rand(1, 3, 12, 8, generator=seeded(0)).to(dtype)
    found = resized(pixels, (6, 4))
    assert found.dtype == dtype
    torch.testing.assert_close(found, smaller(pixels.double(), 6, 4).to(dtype))


# --- refusals --------------------------------------------------------------------------------------------------------


def test_families_that_mix_places_behind_the_tower_are_refused():
    with (
        pytest.raises(UnsupportedError, match="downsample needs a resizable tower; LlavaOnevision"),
        coremat.apply(FAMILIES["llava_onevision"].model(), "downsample"),
    ):
        pass


def test_a_tower_that_is_not_known_to_interpolate_is_not_resized():
    assert clip_towers(SimpleNamespace(model_type="pixtral", patch_size=16), object()) == ()


@pytest.mark.parametrize("sizes", [(), ((0, 2),), ((4, 4), (2, 5))])
def test_sizes_that_a_picture_cannot_have_are_refused(model, sizes):
    class Wrong(Downsample):
        def smaller_grids(self, grid):
            return sizes

    with (
        coremat.apply(model, Wrong(tokens=5)),
        pytest.raises(UnsupportedError, match=r"sizes .* for a picture of \(4, 4\); accepted: at least one"),
    ):
        model.generate(**FAMILIES["llava"].batch("one"), max_new_tokens=1)


@pytest.mark.parametrize("tokens", [0, 1.5, "knee", "all"])
def test_bad_budgets(tokens):
    with pytest.raises(ConfigError, match=r"tokens is .*; accepted: a count of at least 1, a share"):
        Downsample(tokens=tokens)


def test_a_picture_that_is_in_no_prompt_is_refused(model):
    pixels = FAMILIES["llava"].batch("one")["pixel_values"]
    with (
        coremat.apply(model, "downsample:tokens=5"),
        pytest.raises(UnsupportedError, match="1 views came to the vision tower, and the prompts have 0"),
    ):
        model.model.get_image_features(pixel_values=pixels)


def test_videos_come_behind_images_whatever_their_order_in_the_prompts():
    family = FAMILIES["qwen2_vl"]
    model, prompt = family.model(), [1, VIDEO, 30, IMAGE, 31]
    found, stay = reaching(model, family.inputs([prompt], torch.float32), 9)
    assert stay == [3, 7, 11, 15, 19, 21, 25, 27]
    assert found.ne(0).any(1).all()  # places that the tower did not fill hold zeros
