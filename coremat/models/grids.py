"""How the tokens of an image lie on it: rectangles of rows and columns, whose tokens follow each other row by row."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch

from coremat.errors import DataError
from coremat.methods.views import WHOLE, Area

Grid = tuple[int, int]
Grids = tuple[Grid, ...]
ONE_TOKEN: Grid = (1, 1)  # a class token, or a newline behind a view


@dataclass(frozen=True, eq=False)
class Tile:
    """What a tower sees at once of an image. patches: int64 [n], those that have a token; tokens: int64 [n], these
    tokens, counted over the image; grids: their rectangles; area: the part of the image, top, left, bottom and right as
    shares of height and width."""

    patches: torch.Tensor
    tokens: torch.Tensor
    grids: Grids
    area: Area = WHOLE

    @classmethod
    def whole(cls, tokens: int) -> "Tile":
        """A view of the whole image, whose tokens come first."""
        return cls(torch.arange(tokens), torch.arange(tokens), view(tokens))


def view(tokens: int) -> Grids:
    """One view by a square tower; a class token that is kept stands before it."""
    side = isqrt(tokens)
    return (ONE_TOKEN, (side, side)) if tokens > side * side else ((side, side),)


def count_tokens(grids: Grids) -> int:
    return sum(rows * columns for rows, columns in grids)


def given(inputs: Mapping[str, Any], name: str) -> torch.Tensor:
    """The model's input `name`, without which an image or a video in the prompts has no known shape."""
    value = inputs.get(name)
    if value is None:
        raise DataError(
            f"the prompts have images or videos, and no {name} came with them; accepted: all that the "
            "processor returns."
        )
    return torch.as_tensor(value)


def images_of(ids: torch.Tensor, index: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Placeholder id and number of tokens of each image or video, row by row.

    ids, index: int64 [B, S], on the CPU; index: as `Adapter.visual_index` gives it.
    """
    for row, numbers in zip(ids, index, strict=True):
        visual = numbers >= 0
        counts = numbers[visual].bincount()
        kinds = row[visual][counts.cumsum(0) - counts]
        yield from zip(kinds.tolist(), counts.tolist(), strict=True)


def taken(tokens: int, pieces: Iterator[Grids]) -> Grids:
    """The rectangles of `tokens` tokens: the next one of `pieces`, or several, for tiles, for frames and for images
    with nothing between them. DataError where they do not add up."""
    grids: Grids = ()
    found = 0
    while found < tokens:
        piece = next(pieces, None)
        if piece is None:
            raise DataError("the prompts have more images or videos than the inputs tell sizes of; accepted: as many.")
        grids += piece
        found += count_tokens(piece)
    if found > tokens:
        raise DataError(
            f"an image or video has {tokens} tokens in its prompt and {found} by its size; accepted: as many."
        )
    return grids
