"""Pictures made smaller before the vision tower: which sizes the images of a batch get, and the tower's calls at them.

All views of an image (tiles, frames) get the same size, the largest for which its tokens are not above its budget.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from coremat.errors import UnsupportedError
from coremat.hooks import Hooks
from coremat.methods.base import Method
from coremat.models.adapter import Adapter
from coremat.models.grids import Grid, Grids
from coremat.models.image_views import ImageViews
from coremat.models.resizable_towers import ResizableTower, Size


class SmallerViews:
    """kept: bool [N] of each image that was announced last, in the order of the prompts: the tokens that stay."""

    def __init__(self, adapter: Adapter, method: Method) -> None:
        self.adapter, self.method = adapter, method
        if not adapter.resizable_towers:
            raise UnsupportedError(f"{method.label} needs a resizable tower; {type(adapter.model).__name__} has none.")
        self.kept: list[torch.Tensor] = []
        self._sizes: list[Size] = []  # of the views that are still to come to the tower

    def install(self, hooks: Hooks) -> None:
        for tower in self.adapter.resizable_towers:
            hooks.replace(tower.module, "forward", self._forward(tower, tower.module.forward))

    def announce(
        self, grids: Sequence[Grids], kinds: Sequence[int], keeps: Sequence[int], inputs: Mapping[str, Any]
    ) -> None:
        """The images that come next, in the order of the prompts: their grids, placeholder ids and budgets. The model
        gives the tower all images first, then the videos."""
        views = self.adapter.image_views(grids, inputs)
        fits = [fit(own, self._grids(own.grid), keep) for own, keep in zip(views, keeps, strict=True)]
        self.kept = [keep for _, keep in fits]
        video = getattr(self.adapter.model.config, "video_token_id", None)
        order = sorted(range(len(fits)), key=lambda image: kinds[image] == video)
        self._sizes = [size for image in order for size in fits[image][0]]

    def _grids(self, grid: Grid) -> tuple[Grid, ...]:
        """UnsupportedError for sizes that no picture with this grid can have."""
        sizes = tuple(self.method.smaller_grids(grid))
        if not sizes or any(not (0 < rows <= grid[0] and 0 < columns <= grid[1]) for rows, columns in sizes):
            raise UnsupportedError(
                f"{self.method.label} gave the sizes {sizes} for a picture of {grid}; "
                f"accepted: at least one, each from (1, 1) to {grid}."
            )
        return sizes

    def _forward(self, tower: ResizableTower, forward: Callable) -> Callable:
        def smaller(*args: Any, **kwargs: Any) -> Any:
            wholes = tower.grids(args, kwargs)
            sizes = self._next(len(wholes))
            return forward(*args, **kwargs) if sizes == wholes else tower.run(forward, sizes, args, kwargs)

        return smaller

    def _next(self, count: int) -> list[Size]:
        if count > len(self._sizes):
            raise UnsupportedError(
                f"{count} views came to the vision tower, and the prompts have {len(self._sizes)}; "
                "accepted: as many, in one batch."
            )
        own, self._sizes = self._sizes[:count], self._sizes[count:]
        return own


Fit = tuple[tuple[Size, ...], torch.Tensor]


@lru_cache(maxsize=256)
def fit(views: ImageViews, sizes: tuple[Grid, ...], budget: int) -> Fit:
    """The size of each view, and the tokens that stay, bool [N]: the first of `sizes`, the largest first, that the
    budget allows, for all views; where none is, for fewer views, and at last without what shows nothing (class tokens,
    newlines).
    """
    for shown in views.choices():
        for size in sizes:
            if views.least(size, shown) > budget:
                continue
            keep = views.kept(size, shown)
            if keep.sum() <= budget:
                return _sizes(views, size, shown), keep
    *_, one = views.choices()
    return _sizes(views, sizes[-1], one), views.kept(sizes[-1], one, extras=False)


def _sizes(views: ImageViews, size: Grid, shown: Sequence[int]) -> tuple[Size, ...]:
    return tuple(size if number in shown else None for number in range(views.count))
