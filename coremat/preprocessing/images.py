"""Pictures of users: what is in a file, and in which form a model gets it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image, ImageFile, UnidentifiedImageError

from coremat.errors import DataError
from coremat.preprocessing.prompt_format import Preprocessing
from coremat.preprocessing.video import Clip


@contextmanager
def whole_images() -> Iterator[None]:
    """A cut image is an error: lmms-eval, where it was imported, has Pillow fill the rest with grey."""
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def open_medium(path: str, preprocessing: Preprocessing) -> dict[str, Any]:
    """The part of a conversation that shows the image or the video at `path`. DataError where there is neither.

    What Pillow knows by its first bytes is an image, whatever its name; of one that moves, it shows the first picture.
    """
    try:
        with whole_images():
            return {"type": "image", "image": Image.open(path).convert("RGB")}
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path!r}.") from error
    except UnidentifiedImageError:
        return {"type": "video", "video": _clip(path, preprocessing)}
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path!r} is an image that cannot be read: {error}.") from error


def _clip(path: str, preprocessing: Preprocessing) -> Clip:
    try:
        return preprocessing.video(path)
    except DataError as error:
        raise DataError(
            f"{path!r} is neither an image nor a video that can be read; accepted: PNG, JPEG and what else Pillow "
            "reads, MP4 and what else FFmpeg reads."
        ) from error
