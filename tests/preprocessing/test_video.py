"""Frames of a small video that the test writes, each of one grey by its number."""

import sys
from pathlib import Path

import numpy as np
import pytest

from coremat.errors import ConfigError, DataError, UnsupportedError
from coremat.preprocessing.video import Clip, read_clip

av = pytest.importorskip("av")
FRAMES, HEIGHT, WIDTH, RATE = 21, 32, 48, 10


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frame n has the grey 10 n + 20, and a white lower half."""
    path = tmp_path_factory.mktemp("video") / "grey.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(FRAMES):
            picture = np.full((HEIGHT, WIDTH, 3), 10 * number + 20, np.uint8)
            picture[HEIGHT // 2 :] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbers(frames: np.ndarray) -> list[int]:
    """Which frames these are, by their grey."""
    return [round((float(frame[:8].mean()) - 20) / 10) for frame in frames]


def test_frames_at_equal_distances(video):
    clip = read_clip(video, 5)
    frames = clip.frames
    assert frames.shape == (5, HEIGHT, WIDTH, 3)
    assert frames.dtype == np.uint8
    assert numbers(frames) == [0, 5, 10, 15, 20]
    assert (clip.numbers, clip.total, clip.rate) == ((0, 5, 10, 15, 20), FRAMES, RATE)
    assert frames[:, -8:].mean() > 240  # upright


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (2, [0, 20]), (8, [0, 2, 5, 8, 11, 14, 17, 20])])
def test_distances_that_do_not_divide_evenly(video, count, expected):
    assert numbers(read_clip(str(video), count).frames) == expected


def test_more_frames_than_there_are_come_more_than_once(video):
    assert sorted(set(numbers(read_clip(video, 50).frames))) == list(range(FRAMES))


@pytest.mark.parametrize("content", [b"", b"no video" * 100])
def test_a_file_that_is_no_video(tmp_path, content):
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.mp4.*cannot be read as a video"):
        read_clip(path, 8)


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"none\.mp4.*cannot be read as a video"):
        read_clip(tmp_path / "none.mp4", 8)


def test_a_file_with_sound_alone(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="no frames that can be read"):
        read_clip(path, 8)


def test_a_count_below_one(video):
    with pytest.raises(ConfigError, match="count is 0"):
        read_clip(video, 0)


def test_without_pyav_one_sentence_says_what_to_install(video, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UnsupportedError, match="pip install av"):
        read_clip(video, 8)


def test_a_processor_is_told_when_the_frames_were(video):
    said = read_clip(video, 3).metadata
    assert said["duration"] == FRAMES / RATE
    assert [number / said["fps"] for number in said["frames_indices"]] == [0, 1, 2]
    assert (said["total_num_frames"], said["height"], said["width"]) == (FRAMES, HEIGHT, WIDTH)


def test_frames_without_a_file_are_a_video_of_unknown_times():
    clip = Clip.of(np.zeros((3, HEIGHT, WIDTH, 3), np.uint8))
    assert (clip.numbers, clip.total, clip.rate, clip.metadata["duration"]) == ((0, 1, 2), 3, None, None)


def test_a_clip_is_named_by_its_content(video):
    """In full: numpy's own words for an array leave out its middle."""
    clip, again = read_clip(video, 5), read_clip(video, 5)
    assert repr(clip) == repr(again)
    again.frames[2, HEIGHT // 2, WIDTH // 2] ^= 1
    assert repr(clip) != repr(again)
    assert repr(clip) != repr(read_clip(video, 6))
