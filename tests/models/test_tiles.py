"""What a tower sees of an image: each token's patch, held to what the model itself makes of numbered patches."""

from fractions import Fraction

import pytest
import torch

from coremat.methods.views import WHOLE
from coremat.models.families import adapter_for
from coremat.testing.families import FAMILIES
from coremat.testing.families.llava import IMAGE_ID, PATCHES
from coremat.testing.invariants import tiny

NEXT = adapter_for(tiny(FAMILIES["llava_next"]))
SIZES = [(56, 40), (28, 56), (56, 56), (90, 33), (33, 90), (1000, 20)]
NEWLINE = -1


def packed(height, width):
    """Per token of an image the number of its patch, over all tiles, as the model lays them out."""
    tiles = NEXT.tile_count(height, width) + 1
    numbers = torch.arange(tiles * PATCHES).view(tiles, PATCHES, 1).float()
    [tokens], _ = NEXT.core.pack_image_features(
        [numbers], torch.tensor([[height, width]]), "default", torch.tensor([float(NEWLINE)])
    )
    return tokens[:, 0].long().tolist()


def inputs_of(*sizes):
    ids = [30]
    for size in sizes:
        ids += [IMAGE_ID] * len(packed(*size)) + [31]
    return torch.tensor([ids]), {"image_sizes": torch.tensor(sizes)}


@pytest.mark.parametrize("size", SIZES)
def test_each_token_has_the_patch_that_the_model_puts_there(size):
    [tiles] = NEXT.image_tiles(*inputs_of(size))
    expected = packed(*size)
    found = [NEWLINE] * len(expected)
    for number, tile in enumerate(tiles):
        for patch, token in zip(tile.patches.tolist(), tile.tokens.tolist(), strict=True):
            found[token] = number * PATCHES + patch
    assert found == expected


@pytest.mark.parametrize("size", SIZES[:-1])  # of the last no tile has a place: all are padding
def test_the_areas_of_the_tiles_make_up_the_image(size):
    whole, *tiles = NEXT.image_tiles(*inputs_of(size))[0]
    assert whole.area == WHOLE
    assert sum((down - up) * (right - left) for up, left, down, right in (tile.area for tile in tiles)) == 1
    for tile in tiles:
        assert sum(rows * columns for rows, columns in tile.grids) == len(tile.patches)


def test_the_area_of_a_tile_leaves_padding_out():
    """56 x 40 pixels on two by two tiles: of the columns of patches the first and the last are padding."""
    _, *tiles = NEXT.image_tiles(*inputs_of((56, 40)))[0]
    half, one, none = Fraction(1, 2), Fraction(1), Fraction(0)
    assert [tile.area for tile in tiles] == [
        (none, none, half, half),
        (none, half, half, one),
        (half, none, one, half),
        (half, half, one, one),
    ]
    assert [tile.patches.tolist() for tile in tiles] == [[1, 3], [0, 2], [1, 3], [0, 2]]


def test_images_with_nothing_between_them_are_one_with_the_tiles_of_both():
    ids, inputs = inputs_of((56, 40), (28, 56))
    apart = NEXT.image_tiles(ids, inputs)
    beside = ids[ids != 31][None]
    [together] = NEXT.image_tiles(beside, inputs)
    first = len(packed(56, 40))
    expected = [tile.tokens.tolist() for tile in apart[0]] + [(tile.tokens + first).tolist() for tile in apart[1]]
    assert [tile.tokens.tolist() for tile in together] == expected


def test_llava_sees_each_image_once():
    adapter = adapter_for(tiny(FAMILIES["llava"]))
    inputs = FAMILIES["llava"].batch("several images")
    tiles = adapter.image_tiles(inputs["input_ids"], inputs)
    assert [len(image) for image in tiles] == [1, 1]
    assert all(tile.tokens.tolist() == tile.patches.tolist() == list(range(16)) for [tile] in tiles)
