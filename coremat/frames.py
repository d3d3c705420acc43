"""A video file's frames, read with PyAV, FFmpeg's bindings: an optional dependency."""

from pathlib import Path
from typing import Any

import numpy as np

from coremat.errors import ConfigError, DataError, UnsupportedError


def read_frames(path: Path | str, count: int) -> np.ndarray:
    """`count` frames at equal distances, the first and the last among them: uint8 [count, H, W, 3].

    A video of fewer frames gives some more than once. Raises ConfigError for a count below 1, DataError for a file
    that is no readable video, UnsupportedError without PyAV.
    """
    if count < 1:
        raise ConfigError(f"count is {count}; accepted: 1 or more frames.")
    av = _pyav()
    try:
        total = _frames_of(av, path)
        wanted = np.linspace(0, total - 1, count, dtype=int) if total else np.zeros(0, dtype=int)
        held = _decoded(av, path, set(wanted.tolist()))
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{str(path)!r} cannot be read as a video: {error}.") from error
    if not held:
        raise DataError(f"{str(path)!r} has no frames that can be read; accepted: a file with a video in it.")
    return np.stack([held[number] for number in wanted.tolist()])


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise UnsupportedError("reading a video file needs PyAV, which is not installed: pip install av.") from error
    return av


def _stream(container: Any) -> Any:
    """Its first video; FFmpeg may use as many threads as it likes."""
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    return stream


def _frames_of(av: Any, path: Path | str) -> int:
    """By decoding them all: what a file says of itself may be missing or wrong."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(_stream(container))) if container.streams.video else 0


def _decoded(av: Any, path: Path | str, wanted: set[int]) -> dict[int, np.ndarray]:
    if not wanted:
        return {}
    with av.open(str(path)) as container:
        frames = enumerate(container.decode(_stream(container)))
        return {number: frame.to_ndarray(format="rgb24") for number, frame in frames if number in wanted}
