"""How questions, images and videos are put before a model."""

import numpy as np
import pytest
from PIL import Image
from video_files import write_video

from coremat.errors import ConfigError
from coremat.preprocessing.prompt_format import VICUNA, Preprocessing, preprocessing_of

QUESTION = [{"role": "user", "content": [{"type": "text", "text": "what?"}]}]
MEAN = (0.0, 0.5, 1.0)


def test_llava_is_read_as_it_was_evaluated_and_others_by_themselves():
    assert (
        preprocessing_of("llava-1.5-7b")
        == preprocessing_of("llava-1.5-13b")
        == Preprocessing(system=VICUNA, square=True)
    )
    assert (
        preprocessing_of("/models/llava-1.5-7b-hf")
        == preprocessing_of("llava-hf/llava-1.5-7b-hf")
        == preprocessing_of("llava-1.5-7b")
    )
    assert preprocessing_of("shapes-llava") == preprocessing_of("some/checkpoint") == Preprocessing()


def test_what_is_asked_for_goes_before():
    assert preprocessing_of("llava-1.5-7b", system="none", square=False) == Preprocessing()
    assert preprocessing_of("shapes-llava", system="vicuna").system == VICUNA
    assert preprocessing_of("shapes-llava", system="Be brief.", square=True) == Preprocessing(
        system="Be brief.", square=True
    )
    assert preprocessing_of("qwen2.5-vl-7b", min_pixels=784, max_pixels=7840).pixel_limits == {
        "min_pixels": 784,
        "max_pixels": 7840,
    }


def test_it_is_said_in_words():
    assert Preprocessing().in_words == "as the model's own processor does"
    whole = Preprocessing(system="Be brief.", square=True, min_pixels=4, max_pixels=9, frames=16).in_words
    said = "system sentence 'Be brief.', images padded to squares, min_pixels 4, max_pixels 9, 16 frames of a video"
    assert whole == said


def test_the_system_sentence_comes_first_and_once():
    [system, question] = Preprocessing(system="Be brief.").conversation(QUESTION)
    assert (system["role"], system["content"][0]["text"]) == ("system", "Be brief.")
    assert question is QUESTION[0]
    assert Preprocessing(system="Be brief.").conversation([system, question]) == [system, question]
    assert Preprocessing().conversation(QUESTION) is QUESTION


@pytest.mark.parametrize(("size", "left", "top"), [((2, 4), 1, 0), ((4, 2), 0, 1), ((4, 1), 0, 1)])
def test_an_image_is_centred_on_the_mean_colour(size, left, top):
    red = Image.new("RGB", size, (255, 0, 0))
    square = Preprocessing(square=True).image(red, MEAN)
    assert square.size == (4, 4)
    for x in range(4):
        for y in range(4):
            inside = left <= x < left + size[0] and top <= y < top + size[1]
            assert square.getpixel((x, y)) == ((255, 0, 0) if inside else (0, 128, 255))


def test_a_square_image_and_one_that_is_not_to_be_padded_stay():
    red = Image.new("RGB", (3, 3), (255, 0, 0))
    assert Preprocessing(square=True).image(red, MEAN).tobytes() == red.tobytes()
    assert Preprocessing().image(Image.new("L", (3, 5)), MEAN).size == (3, 5)


def test_as_many_frames_are_taken_of_a_file_as_asked_for(tmp_path):
    path = write_video(tmp_path / "grey.mp4", [(10 * number,) * 3 for number in range(15)])
    assert Preprocessing().video(path).numbers == (0, 2, 4, 6, 8, 10, 12, 14)
    assert preprocessing_of("video-llava-7b", frames=3).video(str(path)).numbers == (0, 7, 14)


def test_frames_that_are_there_stay(tmp_path):
    frames = np.zeros((5, 4, 4, 3), np.uint8)
    clip = Preprocessing(frames=2).video(frames)
    assert clip.frames is frames
    assert Preprocessing(frames=2).video(clip) is clip


@pytest.mark.parametrize("frames", [0, -1])
def test_a_number_of_frames_that_cannot_be_is_refused(frames):
    with pytest.raises(ConfigError, match=f"frames is {frames}; accepted"):
        preprocessing_of("video-llava-7b", frames=frames)


@pytest.mark.parametrize("limits", [{"min_pixels": 0}, {"max_pixels": -1}, {"min_pixels": 9, "max_pixels": 4}])
def test_limits_that_cannot_be_are_refused(limits):
    with pytest.raises(ConfigError, match="pixels is"):
        Preprocessing(**limits)
