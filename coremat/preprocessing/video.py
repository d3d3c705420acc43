"""A video file's frames, read with PyAV, FFmpeg's bindings: an optional dependency."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coremat.errors import ConfigError, DataError, UnsupportedError


@dataclass(frozen=True, eq=False, repr=False)
class Clip:
    """Frames of a video. frames: uint8 [count, H, W, 3]; numbers: which of the video's `total` frames they are; rate:
    how many of these pass in a second, None where the file does not say."""

    frames: np.ndarray
    numbers: tuple[int, ...]
    total: int
    rate: float | None

    @classmethod
    def of(cls, frames: np.ndarray) -> "Clip":
        """Frames that are a whole video, whose times are not known."""
        return cls(frames, tuple(range(len(frames))), len(frames), None)

    def __repr__(self) -> str:
        """Names the content, so that it can stand in the key of an answer."""
        pixels = hashlib.sha256(self.frames.tobytes()).hexdigest()
        return f"Clip({self.frames.shape}, {self.numbers} of {self.total}, {self.rate} per second, sha256 {pixels})"

    @property
    def metadata(self) -> dict[str, Any]:
        """As the video processors of transformers take it: some models are told the time of a frame."""
        return {
            "total_num_frames": self.total,
            "fps": self.rate,
            "duration": self.total / self.rate if self.rate else None,
            "frames_indices": list(self.numbers),
            "height": self.frames.shape[1],
            "width": self.frames.shape[2],
        }


def read_clip(path: Path | str, count: int) -> Clip:
    """`count` frames at equal distances, the first and the last among them.

    A video of fewer frames gives some more than once. Raises ConfigError for a count below 1, DataError for a file
    that is no readable video, UnsupportedError without PyAV.
    """
    if count < 1:
        raise ConfigError(f"count is {count}; accepted: 1 or more frames.")
    av = _pyav()
    try:
        total, rate = _length(av, path)
        numbers = tuple(np.linspace(0, total - 1, count, dtype=int).tolist()) if total else ()
        held = _decoded(av, path, set(numbers))
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{str(path)!r} cannot be read as a video: {error}.") from error
    if not held:
        raise DataError(f"{str(path)!r} has no frames that can be read; accepted: a file with a video in it.")
    return Clip(np.stack([held[number] for number in numbers]), numbers, total, rate)


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


def _length(av: Any, path: Path | str) -> tuple[int, float | None]:
    """How many frames there are, by decoding them all: what a file says of that may be missing or wrong; its rate."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            return 0, None
        stream = _stream(container)
        rate = stream.average_rate
        return sum(1 for _ in container.decode(stream)), float(rate) if rate else None


def _decoded(av: Any, path: Path | str, wanted: set[int]) -> dict[int, np.ndarray]:
    if not wanted:
        return {}
    with av.open(str(path)) as container:
        frames = enumerate(container.decode(_stream(container)))
        return {number: frame.to_ndarray(format="rgb24") for number, frame in frames if number in wanted}
