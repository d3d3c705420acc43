"""Vision towers that take a smaller picture: its pixels are resized, and what the tower makes of it is put back among
the places of the whole picture, so that all that comes behind the tower finds as many places as ever.

Places that the smaller picture has not got hold zeros. Pixels are resized as the processor gives them, normalised,
which is a linear change and so the same as before it; bicubic, with antialiasing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch.nn import functional

from coremat.models.grids import Grid
from coremat.models.image_views import places

Size = Grid | None  # rows and columns of a view's tokens; None: the tower does not see the view
Forward = Callable[..., Any]


class ResizableTower(ABC):
    """module: the tower. patch: height and width of a patch in pixels. merged: patches of a token each way, which are
    made one behind the tower or at its end."""

    def __init__(self, module: Any, patch: Grid, merged: int = 1) -> None:
        self.module, self.patch, self.merged = module, patch, merged

    @abstractmethod
    def grids(self, args: tuple, kwargs: Mapping[str, Any]) -> list[Grid]:
        """Rows and columns of the tokens of each view in a call of the tower."""

    @abstractmethod
    def run(self, forward: Forward, sizes: Sequence[Size], args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """What `forward`, the tower's, makes of the views at these sizes; one at least is no None."""

    def pixels(self, size: Grid) -> tuple[int, int]:
        """Height and width of a view of so many rows and columns of tokens."""
        return size[0] * self.merged * self.patch[0], size[1] * self.merged * self.patch[1]


class PixelTower(ResizableTower):
    """A tower that takes views of one size, [n, channels, height, width], and gives [n, places, width] for them, a
    class token first where it has one. options: what it has to be told for views of another size."""

    def __init__(self, module: Any, patch: Grid, merged: int = 1, **options: Any) -> None:
        super().__init__(module, patch, merged)
        self.options = options

    def grids(self, args: tuple, kwargs: Mapping[str, Any]) -> list[Grid]:
        count, _, height, width = _first(args, kwargs, "pixel_values").shape
        return [(height // self.merged // self.patch[0], width // self.merged // self.patch[1])] * count

    def run(self, forward: Forward, sizes: Sequence[Size], args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """One call for each size."""
        pixels, whole = _first(args, kwargs, "pixel_values"), self.grids(args, kwargs)[0]
        parts = []
        for size in dict.fromkeys(size for size in sizes if size is not None):
            rows = torch.tensor([row for row, own in enumerate(sizes) if own == size], device=pixels.device)
            output = forward(**{**kwargs, **self._smaller(pixels[rows], whole, size, kwargs, rows)})
            parts.append((rows, places(whole, size, self.merged).to(pixels.device), output))
        return _put_back(parts, len(pixels), prod(whole) * self.merged**2)

    def _smaller(
        self, pixels: torch.Tensor, whole: Grid, size: Grid, kwargs: Mapping[str, Any], rows: torch.Tensor
    ) -> dict[str, Any]:
        """The arguments that differ for these views."""
        mask = kwargs.get("patch_attention_mask")
        changed = {} if mask is None else {"patch_attention_mask": mask[rows]}
        if size == whole:
            return {"pixel_values": pixels} | changed
        if mask is not None:
            patches = size[0] * self.merged, size[1] * self.merged
            seen = functional.interpolate(mask[rows][:, None].float(), patches, mode="nearest")
            changed = {"patch_attention_mask": seen[:, 0].bool()}
        return {"pixel_values": resized(pixels, self.pixels(size))} | self.options | changed


def clip_towers(config: Any, *modules: Any) -> Sequence[ResizableTower]:
    """CLIP's and SigLIP's, which interpolate their position embeddings when they are asked to; () for other towers."""
    if config.model_type not in ("clip_vision_model", "siglip_vision_model"):
        return ()
    patch = config.patch_size, config.patch_size
    return tuple(PixelTower(module, patch, interpolate_pos_encoding=True) for module in modules)


class PatchTower(ResizableTower):
    """A tower that takes views of any size as patches in one row, those that are merged next to each other, and says
    with `grid_thw` how many each has. frames: of a patch, which is [channels, frames, height, width]."""

    def __init__(self, module: Any, patch: Grid, merged: int, frames: int) -> None:
        super().__init__(module, patch, merged)
        self.frames = frames

    def grids(self, args: tuple, kwargs: Mapping[str, Any]) -> list[Grid]:
        listed = kwargs["grid_thw"].tolist()
        return [(rows // self.merged, columns // self.merged) for count, rows, columns in listed for _ in range(count)]

    def run(self, forward: Forward, sizes: Sequence[Size], args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """Every frame becomes a picture of its own: no patch looks at another frame's."""
        patches, wholes = _first(args, kwargs, "hidden_states"), self.grids(args, kwargs)
        counts = [prod(whole) for whole in wholes]
        own = patches.split([count * self.merged**2 for count in counts])
        starts = [sum(counts[:number]) for number in range(len(counts))]
        views, grid, index = [], [], []
        for view, whole, size, start in zip(own, wholes, sizes, starts, strict=True):
            if size is not None:
                views.append(self._smaller(view, whole, size))
                grid.append((1, size[0] * self.merged, size[1] * self.merged))
                index.append(start + places(whole, size))
        changed = {"hidden_states": torch.cat(views), "grid_thw": kwargs["grid_thw"].new_tensor(grid)}
        output = forward(**{**kwargs, **changed})
        for name in ("pooler_output", "deepstack_features"):
            if output.get(name) is not None:
                output[name] = _placed(output[name], torch.cat(index).to(patches.device), sum(counts))
        return output

    def _smaller(self, view: torch.Tensor, whole: Grid, size: Grid) -> torch.Tensor:
        """The patches [n, values] of one view as those of a smaller one."""
        if size == whole:
            return view
        side, (tall, wide) = self.merged, self.patch
        folded = view.view(*whole, side, side, -1, self.frames, tall, wide).permute(4, 5, 0, 2, 6, 1, 3, 7)
        picture = resized(folded.reshape(1, -1, *self.pixels(whole)), self.pixels(size))
        unfolded = picture.view(-1, self.frames, size[0], side, tall, size[1], side, wide)
        return unfolded.permute(2, 5, 3, 6, 0, 1, 4, 7).reshape(-1, view.shape[1])


def _placed(rows: Any, index: torch.Tensor, count: int) -> Any:
    """Rows [n, width], or each of a list of such, put at the places `index` among `count`."""
    if isinstance(rows, (list, tuple)):
        return type(rows)(_placed(own, index, count) for own in rows)
    return rows.new_zeros(count, rows.shape[1]).index_copy(0, index, rows)


def _first(args: tuple, kwargs: Mapping[str, Any], name: str) -> torch.Tensor:
    return args[0] if args else kwargs[name]


def resized(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[n, channels, height, width] at another height and width."""
    exact = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
    return functional.interpolate(exact, size, mode="bicubic", align_corners=False, antialias=True).to(pixels.dtype)


Part = tuple[torch.Tensor, torch.Tensor, Any]  # which views, where their patches stand in the whole, the tower's output


def _put_back(parts: Sequence[Part], views: int, patches: int) -> Any:
    """One output of the tower's kind, for all views, from those of some of them."""
    outputs = [output for _, _, output in parts]
    return type(outputs[0])(
        **{name: _joined(parts, [output[name] for output in outputs], views, patches) for name in outputs[0]}
    )


def _joined(parts: Sequence[Part], values: Sequence[Any], views: int, patches: int) -> Any:
    """values: of one field. Hidden states [n, extra + patches, width] get all patches, pooled ones [n, width] all
    views; weights of attention have no meaning for the whole and are left out."""
    first = values[0]
    if isinstance(first, (list, tuple)):
        return type(first)(_joined(parts, layer, views, patches) for layer in zip(*values, strict=True))
    if not isinstance(first, torch.Tensor) or first.dim() > 3:
        return None
    if first.dim() == 2:
        whole = first.new_zeros(views, first.shape[1])
        for (rows, _, _), value in zip(parts, values, strict=True):
            whole[rows] = value
        return whole
    extra = first.shape[1] - len(parts[0][1])
    whole = first.new_zeros(views, extra + patches, first.shape[2])
    for (rows, index, _), value in zip(parts, values, strict=True):
        columns = torch.cat([torch.arange(extra, device=index.device), index + extra])
        whole[rows[:, None], columns] = value
    return whole
