"""An image before the projector: what the tower sees of it as one tile or several, and how its budget is spent on them.

Newlines between the rows of tiles have no patch: they stay where the whole image does, and leave it otherwise.
"""

from collections.abc import Sequence

import torch

from coremat.errors import UnsupportedError
from coremat.methods.base import Method, Reduction
from coremat.methods.views import ImageView
from coremat.models.grids import Tile
from coremat.runtime.reductions import check_budget


def reduce_tiles(method: Method, views: Sequence[ImageView], keep: int | None) -> list[Reduction]:
    """What the method keeps of each tile. keep: of all of them together, None for the method's own rule."""
    keeps = _budgets(method, views, keep)
    return [_reduced(method, view, own) for view, own in zip(views, keeps, strict=True)]


def _budgets(method: Method, views: Sequence[ImageView], keep: int | None) -> Sequence[int | None]:
    sizes = [len(view.features) for view in views]
    if keep is None:
        return [None if size else 0 for size in sizes]
    count = min(keep, sum(sizes))
    shares = [count] if len(views) == 1 else list(method.share_tiles(views, count))
    if (
        len(shares) != len(views)
        or sum(shares) > count
        or not all(0 <= own <= n for own, n in zip(shares, sizes, strict=True))
    ):
        raise UnsupportedError(
            f"{method.label} shares {count} tokens over tiles of {sizes} as {shares}; accepted: a count for each, up "
            f"to its size, {count} in all."
        )
    return shares


def _reduced(method: Method, view: ImageView, keep: int | None) -> Reduction:
    if keep == 0:
        return Reduction(torch.zeros(len(view.features), dtype=torch.bool))
    reduction = method.before_projector(view, keep)
    check_budget(method, reduction, view.features, keep)
    return reduction


def placed(reductions: Sequence[Reduction], tiles: Sequence[Tile], tokens: int, keep: int | None) -> torch.Tensor:
    """bool [tokens]: which tokens of the image stay, of a budget of `keep`."""
    if len(tiles) == 1 and len(reductions[0].keep) == tokens:
        return reductions[0].keep
    whole = all(bool(own.keep.all()) for own in reductions) and (keep is None or keep >= tokens)
    stays = torch.full((tokens,), whole)
    for own, tile in zip(reductions, tiles, strict=True):
        stays[tile.tokens] = own.keep.cpu()
    return stays
