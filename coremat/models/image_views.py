"""How the tokens of an image come from views: what the vision tower sees at once, an image, a tile of it or a frame."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

import torch

from coremat.methods.common.grid import centres
from coremat.models.grids import ONE_TOKEN, Grid, Grids


@dataclass(frozen=True, eq=False)
class ImageViews:
    """The views of one image or video, all of them alike.

    grid: rows and columns of the tokens of each view. count: of views. shown: int64 [N], for each of the image's tokens
    the place that it shows, counted through the views; -1 for what shows none (a class token, a newline). group: int64
    [N]; of a group such tokens stay only if another token of it does. overviews: views that show everything when they
    are alone; None: any of them, fewer at even distances.
    """

    grid: Grid
    count: int
    shown: torch.Tensor
    group: torch.Tensor
    overviews: tuple[int, ...] | None = None

    def choices(self) -> Iterator[tuple[int, ...]]:
        """Which views are shown, the best choice first: all; the overviews; fewer and fewer of these."""
        everything = tuple(range(self.count))
        fewer = everything if self.overviews is None else self.overviews
        yield everything
        for number in range(len(fewer), 0, -1):
            yield tuple(fewer[place] for place in centres(len(fewer), number))

    def least(self, size: Grid, views: Sequence[int]) -> int:
        """As many tokens at least stand for these views at this size: of a tile some may be padding that was cut."""
        sure = views if self.overviews is None else set(views).intersection(self.overviews)
        return len(sure) * prod(size)

    def kept(self, size: Grid, views: Sequence[int], extras: bool = True) -> torch.Tensor:
        """bool [N]: the tokens that stand for these views at a size of rows and columns: those at the middles of equal
        parts of the grid. extras: and those that show nothing, where one of their group stays."""
        there = torch.zeros(self.count, prod(self.grid), dtype=torch.bool)
        there[torch.tensor(views)[:, None], places(self.grid, size)] = True
        keep = (self.shown >= 0) & there.flatten()[self.shown]
        if not extras:
            return keep
        alive = torch.zeros(int(self.group.max()) + 1, dtype=torch.bool)
        alive[self.group[keep]] = True
        return keep | ((self.shown < 0) & alive[self.group])


@cache
def plain_views(grids: Grids) -> ImageViews:
    """Each rectangle is a view, and a class token before it, if there is one, goes with it."""
    grid = max(grids, key=prod)
    shown, group = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    views = 0
    for own in grids:
        extra = own == ONE_TOKEN != grid
        shown.append(torch.tensor([-1]) if extra else torch.arange(prod(grid)) + views * prod(grid))
        group.append(torch.full((prod(own),), views))
        views += not extra
    return ImageViews(grid, views, torch.cat(shown), torch.cat(group))


def places(grid: Grid, size: Grid, merged: int = 1) -> torch.Tensor:
    """int64: where in a grid of tokens the rows and columns of a smaller one stand, at the middles of equal parts, row
    by row. merged: count in patches, of which a token has so many each way."""
    rows, columns = (
        torch.tensor([place * merged + part for place in centres(whole, count) for part in range(merged)])
        for whole, count in zip(grid, size, strict=True)
    )
    return (rows[:, None] * grid[1] * merged + columns).flatten()
