"""The image as the model saw it, with the dropped tokens dimmed (the paper's Fig. 8 and 17)."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from coremat.errors import UnsupportedError
from coremat.models.load import LoadedModel
from coremat.results.record.eval import write_atomic

LEAST_SIDE = 384  # px; smaller images are enlarged, so that single tokens can be told apart
DIM = 0.25  # brightness of what was dropped


def overlay(pixels: np.ndarray, tokens: int, kept: Sequence[int]) -> Image.Image:
    """pixels: uint8 [S, S, 3]; tokens: how many cover it, row by row; kept: which of them stayed."""
    side = round(tokens**0.5)
    if side * side != tokens:
        raise UnsupportedError(f"{tokens} image tokens form no square; an overlay needs one square image.")
    stayed = np.zeros(tokens, dtype=np.uint8)
    stayed[list(kept)] = 255
    size = side * -(-max(LEAST_SIDE, len(pixels)) // side)
    image = Image.fromarray(pixels).resize((size, size), Image.Resampling.NEAREST)
    mask = Image.fromarray(stayed.reshape(side, side)).resize((size, size), Image.Resampling.NEAREST)
    return Image.composite(image, image.point(lambda value: round(value * DIM)), mask)


def seen_pixels(loaded: LoadedModel, image: Image.Image) -> np.ndarray:
    """What the processor hands to the vision tower, as uint8 [S, S, 3]: resized and cropped as for the model."""
    processor = loaded.processor.image_processor
    values = np.asarray(processor(images=image, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
    values = values * np.asarray(processor.image_std) + np.asarray(processor.image_mean)
    return (values * 255).round().clip(0, 255).astype(np.uint8)


def save_overlay(loaded: LoadedModel, image: Image.Image, kept: Sequence[int], path: Path) -> None:
    """Write the overlay as PNG. Raises OutputError where the file can't be written."""
    from coremat.models.families import adapter_for

    tokens = adapter_for(loaded.model).image_tokens
    if tokens is None:
        raise UnsupportedError(f"an overlay needs one square image; {loaded.name} cuts images into tiles.")
    picture = overlay(seen_pixels(loaded, image), tokens, kept)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())
