"""Which image or video each token belongs to, where images are uneven; and what cannot be an image of a family."""

from collections.abc import Callable
from functools import cache

import pytest
import torch

from coremat.errors import DataError, UnsupportedError
from coremat.models.adapter import Adapter
from coremat.models.families import adapter_for
from coremat.testing.families import PROMPTS, llava, tiles
from coremat.testing.families.family import IMAGE, VIDEO, WIDE
from coremat.testing.families.tiles import BREAK, CLOSE, FENCE, FRAME, OPEN, WHOLE

FAMILIES = llava.FAMILIES | tiles.FAMILIES
IMG, VID = [llava.IMAGE_ID], [llava.VIDEO_ID]
TEXT = -1
AdapterOf = Callable[[str], Adapter]

# Family, and the pieces of a prompt: their ids, and the image that they belong to.
CASES = {
    "newlines belong to the image": ("llava_next", [(IMG * 16, 0), ([30], TEXT), (IMG * 14, 1), ([31], TEXT)]),
    "tiled images side by side are one": ("llava_next", [([30], TEXT), (IMG * 30, 0), ([31], TEXT)]),
    "one view each of several images": ("llava_onevision", [(IMG * 5, 0), (IMG * 5, 1), ([30], TEXT)]),
    "an image that is tiled": ("llava_onevision", [(IMG * 16, 0), ([30], TEXT)]),
    "a video beside an image": ("llava_onevision", [(IMG * 14, 0), (VID * 5, 1), ([30], TEXT)]),
    "even images, and videos by run": (
        "video_llava",
        [([30], TEXT), (IMG * 4, 0), (IMG * 4, 1), (VID * 20, 2), ([31], TEXT), (VID * 10, 3), ([32], TEXT)],
    ),
    "all tiles in one run": (
        "internvl",
        [([OPEN], TEXT), (IMG * 20, 0), ([CLOSE, OPEN], TEXT), (IMG * 4, 1), ([CLOSE, 30], TEXT)],
    ),
    "tiles between one fence, images between two": (
        "idefics3",
        [
            ([30, FENCE, 12], TEXT),
            (IMG * 4, 0),
            ([FENCE, 13], TEXT),
            (IMG * 4, 0),
            ([BREAK, BREAK, FENCE, WHOLE], TEXT),
            (IMG * 4, 0),
            ([FENCE, FENCE, WHOLE], TEXT),
            (IMG * 4, 1),
            ([FENCE, 31, FENCE, 12], TEXT),
            (IMG * 4, 2),
            ([BREAK, BREAK, FENCE, WHOLE], TEXT),
            (IMG * 4, 2),
            ([FENCE, 32], TEXT),
        ],
    ),
    "frames are images": (
        "smolvlm",
        [
            ([FRAME, FENCE, WHOLE], TEXT),
            (IMG * 4, 0),
            ([FENCE, FRAME, FENCE, WHOLE], TEXT),
            (IMG * 4, 1),
            ([FENCE], TEXT),
        ],
    ),
}
WRONG = {
    "no tile": ("llava_next", IMG * 4, "a run of 4 image tokens; accepted: more than 4,"),
    "no newline": ("llava_onevision", IMG * 4, "a run of 4 image tokens; accepted: more than 4,"),
    "no frame": ("llava_onevision", VID, "a run of 1 image tokens; accepted: more than 1, a video's"),
    "half an image": ("video_llava", IMG * 6, "a run of 6 image tokens; accepted: a multiple of 4,"),
    "half a frame": ("video_llava", VID * 12, "a run of 12 image tokens; accepted: a multiple of 5,"),
    "half a tile": ("internvl", IMG * 22, "a run of 22 image tokens; accepted: a multiple of 4,"),
    "a short tile": ("smolvlm", IMG * 3, "a run of 3 image tokens; accepted: a multiple of 4,"),
}


@pytest.fixture(scope="module")
def adapter_of() -> AdapterOf:
    """The adapter of a family's tiny model; each is made once."""
    return cache(lambda name: adapter_for(FAMILIES[name].model()))


@pytest.mark.parametrize("case", CASES)
def test_the_image_of_each_token(adapter_of: AdapterOf, case: str) -> None:
    name, pieces = CASES[case]
    ids = torch.tensor([[one for part, _ in pieces for one in part]])
    expected = torch.tensor([[number for part, number in pieces for _ in part]])
    assert torch.equal(adapter_of(name).visual_index(ids), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_padded_batch_has_the_images_of_its_rows(adapter_of: AdapterOf, name: str) -> None:
    adapter, prompts = adapter_of(name), PROMPTS["left-padded"]
    together = adapter.visual_index(FAMILIES[name].inputs(prompts, torch.float32)["input_ids"])
    assert (together.amax(1) + 1).tolist() == [1, 1, 2, 0]
    for row, prompt in zip(together, prompts, strict=True):
        alone = adapter.visual_index(FAMILIES[name].inputs([prompt], torch.float32)["input_ids"])[0]
        assert torch.equal(row[-len(alone) :], alone)
        assert (row[: -len(alone)] == TEXT).all()


@pytest.mark.parametrize("case", WRONG)
def test_runs_that_cannot_be_images_are_refused(adapter_of: AdapterOf, case: str) -> None:
    name, run, message = WRONG[case]
    with pytest.raises(DataError, match=message):
        adapter_of(name).visual_index(torch.tensor([[30, *run, 31]]))


@pytest.mark.parametrize("name", FAMILIES)
def test_each_image_and_video_passes_a_tower_and_then_the_projector(adapter_of: AdapterOf, name: str) -> None:
    adapter, family, passed = adapter_of(name), FAMILIES[name], []
    (prompt,) = PROMPTS["several images"]
    prompt = [*prompt, VIDEO, 36] if "video" in family.batches else prompt
    tower, projector = adapter.vision
    handles = [
        tower.register_forward_pre_hook(lambda *_: passed.append("tower")),
        projector.register_forward_hook(lambda *_: passed.append("projector")),
    ]
    adapter.model.generate(**family.inputs([prompt], torch.float32), max_new_tokens=1, do_sample=False)
    for handle in handles:
        handle.remove()
    apart = name in ("llava_onevision", "video_llava")  # videos go by themselves, and elsewhere as images
    assert passed == ["tower", "projector"] * (2 if apart else 1)
    adapter.model.generate(**family.inputs([prompt], torch.float32), max_new_tokens=1, do_sample=False)
    assert len(passed) == (4 if apart else 2)


def test_a_sliding_window_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="a sliding window of 16; only full attention"):
        adapter_for(llava.llava_next(sliding_window=16))


def test_words_of_both_shapes_differ() -> None:
    """Or else no batch would have images of different lengths."""
    for name in ("llava_next", "internvl", "idefics3"):
        lengths = {FAMILIES[name].inputs([[30, word, 31]], torch.float32)["input_ids"].shape for word in (IMAGE, WIDE)}
        assert len(lengths) == 2
