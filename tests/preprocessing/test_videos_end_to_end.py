"""From a video file to an answer: what processors get, which families take videos, Video-LLaVA with fewer tokens."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image, ImageFile
from tiny import tiny_llava
from transformers import Qwen3VLVideoProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from video_files import write_video
from video_model import FRAME, VIDEO_ID, save_video_llava

from coremat.errors import DataError, UnsupportedError
from coremat.generate import answering, prepare
from coremat.methods.registry import parse
from coremat.models.families import ADAPTERS
from coremat.models.load import LoadedModel, load
from coremat.preprocessing.images import open_medium
from coremat.preprocessing.prompt_format import Preprocessing

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
DENSE = parse("dense")
GENERATION = {"max_new_tokens": 4, "do_sample": False}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(str(save_video_llava(tmp_path_factory.mktemp("model"))), "cpu", "float32")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of several lengths, shapes and kinds of file."""
    folder = tmp_path_factory.mktemp("videos")
    return [
        str(write_video(folder / "a.mp4", [RED] * 8 + [BLUE] * 8)),
        str(write_video(folder / "b.avi", [GREEN] * 5, (32, 80))),
        str(write_video(folder / "c.mkv", [BLUE, RED] * 10, (96, 64))),
    ]


def asked(video: Any, question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "video", "video": video}, {"type": "text", "text": question}]}]


def test_every_frame_has_its_tokens_and_pixels(loaded: LoadedModel, videos: list[str]) -> None:
    inputs = prepare(loaded, [asked(videos[0], "who?"), asked(videos[1], "why is that so?")])
    assert (inputs["input_ids"] == VIDEO_ID).sum(1).tolist() == [8 * FRAME] * 2
    assert inputs["pixel_values_videos"].shape[:2] == (2, 8)
    red, blue = inputs["pixel_values_videos"][0, [0, 7]].mean((2, 3)).argmax(1).tolist()
    assert (red, blue) == (0, 2)


def test_another_number_of_frames(loaded: LoadedModel, videos: list[str]) -> None:
    inputs = prepare(replace(loaded, preprocessing=Preprocessing(frames=3)), [asked(videos[0], "who?")])
    assert int((inputs["input_ids"] == VIDEO_ID).sum()) == 3 * FRAME


def test_pixels_of_videos_are_in_the_models_dtype(loaded: LoadedModel, videos: list[str]) -> None:
    half = replace(loaded, model=torch.nn.Module())
    half.model.config, half.model.device, half.model.dtype = loaded.model.config, "cpu", torch.bfloat16
    half.model.get_decoder = loaded.model.get_decoder
    assert prepare(half, [asked(videos[0], "who?")])["pixel_values_videos"].dtype == torch.bfloat16


class SeesVideosAs:
    """A processor that only shows its videos to a family's video processor."""

    def __init__(self, video_processor: Any) -> None:
        self.video_processor = video_processor

    def apply_chat_template(self, conversation: Any, add_generation_prompt: bool) -> str:
        return ""

    def __call__(self, videos: list[np.ndarray], videos_kwargs: dict[str, Any], **rest: Any) -> Any:
        return self.video_processor(videos=videos, return_metadata=True, return_tensors="pt", **videos_kwargs)


def test_frames_are_not_chosen_again_and_keep_their_times(loaded: LoadedModel, videos: list[str]) -> None:
    """Qwen3-VL's processor would take frames of its own, and writes the seconds of each into the prompt."""
    inputs = prepare(replace(loaded, processor=SeesVideosAs(Qwen3VLVideoProcessor())), [asked(videos[0], "who?")])
    assert int(inputs["video_grid_thw"][0, 0]) == 8 // 2  # a pair of frames each
    [times] = [metadata.timestamps for metadata in inputs["video_metadata"]]
    assert times == [number / 8 for number in (0, 2, 4, 6, 8, 10, 12, 15)]


@pytest.mark.parametrize("method", ["dense", "corematching", "corematching:tokens=7"])
def test_a_batch_of_videos_is_answered_as_each_alone(loaded: LoadedModel, videos: list[str], method: str) -> None:
    conversations = [asked(video, question) for video in videos for question in ("who?", "what is the man doing?")]
    with answering(loaded, parse(method)) as answer:
        together = answer(conversations, GENERATION)
        alone = [answer([one], GENERATION)[0] for one in conversations]
    assert [one.text for one in together] == [one.text for one in alone]
    assert len({one.text for one in alone}) > 2
    assert {one.stats.image_tokens for one in together} == {8 * FRAME}
    if parse(method).prunes_tokens:
        assert all(one.stats.image_tokens_kept < 8 * FRAME for one in together)


def test_a_model_that_takes_no_videos_says_so(loaded: LoadedModel, videos: list[str]) -> None:
    images_only = replace(loaded, name="llava-1.5-7b", model=tiny_llava())
    with pytest.raises(UnsupportedError, match=r"^llava-1.5-7b takes no videos; .*: internvl, .*, video_llava\.$"):
        prepare(images_only, [asked(videos[0], "who?")])


@pytest.mark.parametrize("family", [name for name, adapter in ADAPTERS.items() if adapter.takes_images])
def test_the_families_that_take_videos_are_those_whose_processor_does(family: str) -> None:
    parts = getattr(transformers, PROCESSOR_MAPPING_NAMES[family]).get_attributes()
    assert ADAPTERS[family].takes_videos == ("video_processor" in parts)


def test_counts_that_do_not_fit_are_named(loaded: LoadedModel, videos: list[str]) -> None:
    [message] = asked(videos[0], "who <video>?")
    with pytest.raises(DataError, match="0 images, 1 videos and 1 questions do not fit"):
        prepare(loaded, [[message]])


def test_a_file_is_an_image_or_a_video_by_its_content(
    videos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)  # lmms-eval sets it, where it was imported before
    picture = tmp_path / "picture.mp4"
    Image.effect_noise((40, 30), 90).save(picture, format="PNG")
    assert open_medium(str(picture), Preprocessing())["image"].size == (40, 30)
    moving = Path(videos[0]).read_bytes()
    (tmp_path / "video.png").write_bytes(moving)
    assert open_medium(str(tmp_path / "video.png"), Preprocessing(frames=2))["video"].numbers == (0, 15)
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:500])
    with pytest.raises(DataError, match=r"cut\.png' is an image that cannot be read"):
        open_medium(str(tmp_path / "cut.png"), Preprocessing())
