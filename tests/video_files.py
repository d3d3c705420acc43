"""Small video files, written with PyAV."""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

Colour = tuple[int, ...]


def write_video(path: Path, colours: Sequence[Colour], size: tuple[int, int] = (64, 48), rate: int = 8) -> Path:
    """One frame of each colour (red, green, blue), `size` as width and height in even numbers. MPEG-4 in what the
    path's ending names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for colour in colours:
            picture = np.full((height, width, 3), colour, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path
