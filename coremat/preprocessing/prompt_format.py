"""How questions, images and videos are put before a model: system sentence, square padding, limits on pixels, frames.

Scores of LLaVA-1.5 move by a point or two with these, so they are named in the record. Its released evaluation begins
with Vicuna's system sentence and pads every image to a square with the mean colour; Hugging Face's processor does
neither by itself. Of a video, Video-LLaVA and its evaluation take eight frames.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from coremat.checks import whole_number
from coremat.errors import ConfigError
from coremat.models.known import known_name
from coremat.preprocessing.video import Clip, read_clip

VICUNA = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions."
)
SYSTEMS = {"none": "", "vicuna": VICUNA}
FRAMES = 8


@dataclass(frozen=True)
class Preprocessing:
    """system: the sentence before the first question, "" for none. square: pad images to a square with the processor's
    mean colour. min_pixels, max_pixels: of an image, for processors with dynamic resolution; None leaves their own.
    frames: taken of a video, at equal distances."""

    system: str = ""
    square: bool = False
    min_pixels: int | None = None
    max_pixels: int | None = None
    frames: int = FRAMES

    def __post_init__(self) -> None:
        for name in ("min_pixels", "max_pixels", "frames"):
            value = getattr(self, name)
            if value is not None:
                whole_number(name, value, least=1)
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ConfigError(f"min_pixels is {self.min_pixels}; accepted: up to max_pixels, {self.max_pixels}.")

    def conversation(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """With the system sentence, unless the messages bring their own."""
        if not self.system or (messages and messages[0]["role"] == "system"):
            return messages
        return [{"role": "system", "content": [{"type": "text", "text": self.system}]}, *messages]

    def image(self, picture: Image.Image, mean: tuple[float, ...]) -> Image.Image:
        """In RGB, padded if asked for. mean: of the processor, 0 to 1."""
        picture = picture.convert("RGB")
        if not self.square or picture.width == picture.height:
            return picture
        side = max(picture.size)
        square = Image.new("RGB", (side, side), tuple(round(255 * value) for value in mean))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        return square

    def video(self, source: str | Path | np.ndarray | Clip) -> Clip:
        """`frames` of a file; a clip, or an array of frames, uint8 [T, H, W, 3], as it is."""
        if isinstance(source, (str, Path)):
            return read_clip(source, self.frames)
        return source if isinstance(source, Clip) else Clip.of(source)

    @property
    def pixel_limits(self) -> dict[str, int]:
        """Those that are given, as a processor takes them."""
        limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        return {name: value for name, value in limits.items() if value is not None}

    @property
    def in_words(self) -> str:
        said = [f"system sentence {self.system!r}"] if self.system else []
        said += ["images padded to squares"] if self.square else []
        said += [f"{name} {value}" for name, value in self.pixel_limits.items()]
        said += [f"{self.frames} frames of a video"] if self.frames != FRAMES else []
        return ", ".join(said) or "as the model's own processor does"

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


EVALUATED = {name: Preprocessing(system=VICUNA, square=True) for name in ("llava-1.5-7b", "llava-1.5-13b")}


def preprocessing_of(
    model: str,
    system: str = "auto",
    square: bool | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    frames: int | None = None,
) -> Preprocessing:
    """The way in which a model was evaluated by its authors, where that is known, with what is asked for otherwise.

    model: a known name, or its hub id or a folder called like either. system: auto, none, vicuna, or a sentence.
    """
    own = EVALUATED.get(known_name(model), Preprocessing())
    if system != "auto":
        own = replace(own, system=SYSTEMS.get(system, system))
    if square is not None:
        own = replace(own, square=square)
    if frames is not None:
        own = replace(own, frames=frames)
    return replace(own, min_pixels=min_pixels, max_pixels=max_pixels)
