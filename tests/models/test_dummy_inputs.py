"""What a check may count on: models that are the same at each call, pixels that depend on the prompt alone."""

import pytest
import torch

from coremat.errors import DataError, UnknownNameError
from coremat.testing.families import FAMILIES, PROMPTS, Family
from coremat.testing.families.family import BOS, IMAGE, VIDEO, placeholders

TAKES_NO_VIDEO = [name for name, family in FAMILIES.items() if "video" not in family.batches]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_has_the_same_weights_at_each_call_and_leaves_the_random_state_alone(name: str) -> None:
    first = FAMILIES[name].model().state_dict()
    torch.rand(3)
    before = torch.get_rng_state()
    second = FAMILIES[name].model().state_dict()
    assert all(torch.equal(second[key], value) for key, value in first.items())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.images])
def test_each_image_has_pixels_of_its_own_that_are_the_same_at_each_call(name: str) -> None:
    def pixels(prompt: list[int | str]) -> torch.Tensor:
        inputs = FAMILIES[name].inputs([prompt], torch.float64)
        return next(value for key, value in inputs.items() if key.startswith("pixel_values"))

    prompt = PROMPTS["one"][0]
    assert pixels(prompt).dtype == torch.float64
    assert torch.equal(pixels(prompt), pixels(list(prompt)))
    assert not torch.equal(pixels(prompt), pixels([*prompt, 33]))


def test_placeholders_come_in_reading_order() -> None:
    prompts = [[BOS, IMAGE, 30, VIDEO], [VIDEO, IMAGE]]
    assert list(placeholders(prompts, IMAGE)) == [(prompts[0], 1, IMAGE), (prompts[1], 1, IMAGE)]
    assert [place for _, place, _ in placeholders(prompts, IMAGE, VIDEO)] == [1, 3, 0, 1]


@pytest.mark.parametrize("name", TAKES_NO_VIDEO)
def test_a_video_is_refused_where_a_family_takes_none(name: str) -> None:
    with pytest.raises(DataError, match=r"^a prompt holds the placeholder 'video'; accepted: 'image', 'wide image'\.$"):
        FAMILIES[name].batch("video")


def test_a_batch_of_another_name_is_refused() -> None:
    family = FAMILIES["llava"]
    with pytest.raises(UnknownNameError, match="unknown batch 'left-pad': did you mean 'left-padded'"):
        family.batch("left-pad")
    with pytest.raises(UnknownNameError, match="unknown batch 'many'"):
        Family("own", family.model, family.inputs, ("one", "many"))
    with pytest.raises(UnknownNameError, match="unknown batch 'two'"):
        Family("own", family.model, family.inputs, rows="two")
