"""What is the Qwens' own: sliding windows that no released model has, videos beside images, DeepStack's last layer."""

import re

import pytest
import torch
from equivalence import compare
from test_families import refusal

from coremat.models.families import adapter_for
from coremat.testing.families import FAMILIES
from coremat.testing.families.family import BOS, IMAGE, VIDEO, WIDE
from coremat.testing.families.qwen import GRIDS, qwen2_5_vl, qwen2_vl, tokens_of

QWENS = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
MIXED = [[BOS, 30, IMAGE, 31, VIDEO, 32], [BOS, VIDEO, 33, WIDE, 34, 35, 36]]


@pytest.mark.parametrize("make", [qwen2_vl, qwen2_5_vl])
def test_sliding_layers_are_refused(make):
    sliding = make(use_sliding_window=True, sliding_window=8, max_window_layers=2)
    assert re.search("sliding window of 8", refusal(sliding, "corematching"))


@pytest.mark.parametrize("name", QWENS)
def test_images_and_videos_in_one_batch(errors, name):
    inputs = FAMILIES[name].inputs(MIXED, torch.float32)
    compare(FAMILIES[name].model(), inputs, "corematching:tokens=0.4", errors, f"{name}, images and videos")


@pytest.mark.parametrize(("name", "frames"), [("qwen2_vl", 1), ("qwen2_5_vl", 1), ("qwen3_vl", GRIDS[VIDEO][0])])
def test_a_video_is_one_run_or_one_for_each_frame(name, frames):
    family = FAMILIES[name]
    index = adapter_for(family.model()).visual_index(family.inputs(MIXED[:1], torch.float32)["input_ids"])
    counts = index[index >= 0].bincount().tolist()
    assert counts == [tokens_of(IMAGE), *[tokens_of(VIDEO) // frames] * frames]
