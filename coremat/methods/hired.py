"""HiRED: the image tokens that the tower's class token attends to most, tile by tile, more of the tiles that matter.

Arif, Yoon, Nikolopoulos, Vandierendonck, John and Ji, "HiRED: Attention-Guided Token Dropping for Efficient Inference
of High-Resolution Vision-Language Models", AAAI 2025 (arXiv 2408.10945). Of an image that the tower sees as a whole
view and its tiles, a share of the budget (alpha) goes to the whole view. The rest goes to the tiles, in proportion to
how many of the whole view's places with the most class attention in the tower's first layer lie in each. Within each,
the places with the most class attention, summed over heads, of the layer that gives the features stay. An image that
is seen once has its whole budget there.

Departures: a place lies in the tile that shows its part of the image, rows and columns, padding left out (the authors'
code cuts the flat list of places into strips). Shares are rounded down and limited by a tile's places, as theirs; what
that leaves is given to the tiles that lack most, so that the budget is spent exactly. The budget is the sequence's,
and counts newlines; these leave the sequence (as theirs), unless the whole image stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import ClassVar

import torch

from coremat.methods.base import Method, Reduction, Stage
from coremat.methods.budget import as_fraction, share_out
from coremat.methods.common.picks import highest
from coremat.methods.options import FixedBudget, Positions, Share
from coremat.methods.views import WHOLE, ImageView

FIRST_LAYER = 0  # of the tower, whose attention says which tiles matter


@dataclass(frozen=True, kw_only=True)
class HiRED(Method):
    """tokens: a count or a share (the authors' 0.2, 0.1 and 0.4). alpha: the whole view's share of the budget where
    there are tiles besides. tower_layer: whose attention is read within a tile. positions: of the kept tokens."""

    name: ClassVar[str] = "hired"
    summary: ClassVar[str] = "HiRED: image tokens by class attention, more of the tiles that the whole view attends to"
    paper: ClassVar[str] = "Arif et al., AAAI 2025 (arXiv 2408.10945)"
    departures: ClassVar[str] = "tiles by rows and columns, not strips; the budget is the sequence's, spent exactly"
    needs: ClassVar[frozenset[str]] = frozenset({"class token"})

    tokens: FixedBudget = 0.2
    alpha: Share = 0.5
    tower_layer: int = -2
    positions: Positions = "auto"

    def stages(self, layers: int) -> Sequence[Stage]:
        return (Stage(0, self.tokens, self.positions),)

    def tower_layers(self) -> Sequence[int]:
        return (self.tower_layer, FIRST_LAYER)

    def share_tiles(self, tiles: Sequence[ImageView], keep: int) -> Sequence[int]:
        """Of several images that count as one, each has its part by its size."""
        starts = [number for number, tile in enumerate(tiles) if tile.area == WHOLE] or [0]
        images = [tiles[start:end] for start, end in zip(starts, [*starts[1:], len(tiles)], strict=True)]
        keeps = share_out(keep, [sum(len(tile.features) for tile in image) for image in images])
        return [share for image, own in zip(images, keeps, strict=True) for share in self._share_image(image, own)]

    def _share_image(self, tiles: Sequence[ImageView], keep: int) -> list[int]:
        whole, *others = tiles
        sizes = [len(tile.features) for tile in others]
        own = max(min(int(as_fraction(self.alpha) * keep), len(whole.features)), keep - sum(sizes))
        attention = whole.tower[FIRST_LAYER].attention().sum(0)
        top = highest(attention, int((1 - as_fraction(self.alpha)) * len(attention)))
        weights = places_in(top, [tile.area for tile in others])
        return [own, *apportioned(keep - own, weights if any(weights) else sizes, sizes)]

    def before_projector(self, image: ImageView, keep: int | None) -> Reduction:
        return Reduction(highest(image.tower[self.tower_layer].attention().sum(0), keep or 0))


def places_in(top: torch.Tensor, areas: Sequence[Sequence]) -> list[int]:
    """How many of the places of a square view, bool [N], have their middle in each area (`ImageView.area`)."""
    side = isqrt(len(top))
    rows, columns = (2 * line + 1 for line in top.view(side, side).nonzero(as_tuple=True))  # middles, in halves
    rows, columns = rows.cpu(), columns.cpu()
    counts = []
    for area in areas:
        up, left, down, right = (int(-(-2 * side * share // 1)) for share in area)  # the first middle not above it
        counts.append(int(((rows >= up) & (rows < down) & (columns >= left) & (columns < right)).sum()))
    return counts


def apportioned(count: int, weights: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """`count`, at most the sum of `sizes`, in whole shares in proportion to `weights`: rounded down, at most the size,
    and then one by one to whoever lacks most and has room, ties to the lower index."""
    total = max(1, sum(weights))
    shares = [min(size, count * weight // total) for weight, size in zip(weights, sizes, strict=True)]
    while sum(shares) < count:
        open_ones = [index for index, size in enumerate(sizes) if shares[index] < size]
        most = max(open_ones, key=lambda index: count * weights[index] - shares[index] * total)
        shares[most] += 1
    return shares
