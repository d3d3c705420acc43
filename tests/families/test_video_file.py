"""From a video file to an answer of Video-LLaVA: frames, its processor, and a model with fewer tokens."""

import numpy as np
import pytest
from family import BOS, EOS, PAD
from tiny_llavas import FRAMES, IMAGE_ID, PATCHES, VIDEO_ID, VIEW, video_llava
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
    VideoLlavaVideoProcessor,
)

import coremat
from coremat import SparsityConfig
from coremat.frames import read_frames

av = pytest.importorskip("av")


@pytest.fixture(scope="module")
def processor():
    """With the ids of the tiny model."""
    words = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "<unk>": 3, "<image>": IMAGE_ID, "<video>": VIDEO_ID, "who": 30}
    splitting = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    splitting.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=splitting, pad_token="<pad>", padding_side="left")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"]})
    size = {"size": {"shortest_edge": VIEW}, "crop_size": {"height": VIEW, "width": VIEW}}
    return VideoLlavaProcessor(
        VideoLlavaImageProcessor(**size),
        VideoLlavaVideoProcessor(**size),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "noise.mp4"
    generator = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(11):
            picture = generator.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_video_file_is_answered(processor, video):
    model, frames = video_llava(), read_frames(video, FRAMES)
    inputs = processor(videos=[frames], text=["<video> who who"], return_tensors="pt")
    with coremat.apply(model, SparsityConfig(tokens=7)) as session:
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        (row,) = session.stats
    assert (row.image_tokens, row.image_tokens_kept) == (FRAMES * (PATCHES + 1), 7)
    assert out.shape[1] == inputs["input_ids"].shape[1] + 3
