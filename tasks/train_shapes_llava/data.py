"""Training batches: easy-VQA's train split and fresh shapes scenes, several questions on one image.

Each image carries a label map for the auxiliary loss: what covers each of its 144 patches.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from coremat.tasks.bundled.shapes.generator import (
    COLORS,
    DIGITS,
    IMAGE_SIZE,
    SHAPES,
    SIGN,
    WORDS,
    Question,
    Scene,
    make_questions,
    make_scene,
)
from coremat.tasks.train_shapes_llava.architecture import PATCH

EASY_COLORS = ("black", "brown", "gray", "teal")
EASY_SHAPES = ("rectangle",)
HARD_KINDS = ("location", "relation", "relation", "relation")  # asked most: they are learned last
OTHERS = 4  # questions of all kinds on a scene; the rest are hard ones
COLOR_LABELS = ("ground", *COLORS, *EASY_COLORS, SIGN)
SHAPE_LABELS = ("ground", *SHAPES, *EASY_SHAPES, *DIGITS, *WORDS)

Labels = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Example:
    """An image uint8 [96, 96, 3], its questions, and colour and shape labels [144] of its patches."""

    pixels: np.ndarray
    questions: list[Question]
    labels: Labels


def _patches(owner: np.ndarray) -> np.ndarray:
    """Which object (0-based, -1: ground) covers each patch: the one with most pixels, if it has an eighth of them."""
    side = IMAGE_SIZE // PATCH
    blocks = owner.reshape(side, PATCH, side, PATCH).transpose(0, 2, 1, 3).reshape(side * side, -1)
    count = np.stack([(blocks == n).sum(1) for n in range(max(1, owner.max() + 1))], 1)
    best = count.argmax(1)
    return np.where(count.max(1) * 8 >= PATCH * PATCH, best, -1)


def _labels(owner: np.ndarray, names: list[tuple[str, str]]) -> Labels:
    """Label ids per patch, from (colour, shape) of each object."""
    index = _patches(owner)
    colors = np.array([*(COLOR_LABELS.index(c) for c, _ in names), 0])
    shapes = np.array([*(SHAPE_LABELS.index(s) for _, s in names), 0])
    return colors[index], shapes[index]


def shapes_example(scene: Scene, questions: list[Question]) -> Example:
    names = [(t.color or SIGN, t.text or t.shape) for t in scene.things]
    return Example(scene.pixels, questions, _labels(scene.owner, names))


class EasyVQA:
    """The train split of easy-VQA (package `easy-vqa`, MIT): 4,000 images, 38,575 questions."""

    def __init__(self, split: str = "train") -> None:
        self.folder = Path(str(resources.files("easy_vqa"))) / "data" / split
        self.questions: dict[int, list[Question]] = {}
        for question, answer, image in json.loads((self.folder / "questions.json").read_text()):
            self.questions.setdefault(image, []).append(Question("easyvqa", question, answer))

    @cached_property
    def images(self) -> dict[int, np.ndarray]:
        """As the processor resizes them: bicubic, 64 to 96 px."""
        size = (IMAGE_SIZE, IMAGE_SIZE)
        return {
            i: np.asarray(
                Image.open(self.folder / "images" / f"{i}.png").convert("RGB").resize(size, Image.Resampling.BICUBIC)
            )
            for i in self.questions
        }

    def example(self, image: int, rng: np.random.Generator, most: int) -> Example:
        pixels = self.images[image]
        if rng.random() < 0.5:  # no question speaks of left or right
            pixels = pixels[:, ::-1]
        questions = self.questions[image]
        chosen = [questions[i] for i in rng.permutation(len(questions))[:most]]
        return Example(pixels, chosen, self._image_labels(image, pixels))

    def _image_labels(self, image: int, pixels: np.ndarray) -> Labels:
        """Colour and shape as the questions tell them; where: all that differs from the corner's ground."""
        said = {(q.question.split()[1], q.answer) for q in self.questions[image] if q.question.startswith("what")}
        words = {answer for _, answer in said}
        color = next((w for w in words if w in COLOR_LABELS), None)
        shape = next((w for w in words if w in SHAPE_LABELS), None)
        ground = np.median(pixels.reshape(-1, 3), axis=0)
        owner = np.where(np.abs(pixels.astype(int) - ground).max(2) > 40, 0, -1)
        if color is None or shape is None:
            unknown = np.full((IMAGE_SIZE // PATCH) ** 2, -100)  # ignored by the loss
            return unknown, unknown
        return _labels(owner, [(color, shape)])


def examples(
    seed: int, start: int, easy: EasyVQA, easy_share: float, most_objects: int, asked: int
) -> Iterator[Example]:
    """An endless stream, item `n` a function of (seed, n) alone: a resumed run sees what it would have seen."""
    ids = np.array(sorted(easy.questions))
    number = start
    while True:
        rng = np.random.default_rng((seed, number))
        if rng.random() < easy_share:
            yield easy.example(int(rng.choice(ids)), rng, asked)
        else:
            scene = make_scene((seed, number), most=most_objects)
            yield shapes_example(scene, _questions(scene, (seed, number), asked))
        number += 1


def _questions(scene: Scene, seed: tuple[int, int], asked: int) -> list[Question]:
    others = make_questions(scene, (*seed, 1), min(OTHERS, asked))
    hard = make_questions(scene, (*seed, 2), asked, once=(), more=HARD_KINDS)
    return list(dict.fromkeys(others + hard))[:asked]


def pixel_tensor(batch: list[Example]) -> torch.Tensor:
    """float32 [B, 3, 96, 96] in [-1, 1], as the processor gives it."""
    pixels = np.stack([e.pixels for e in batch])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
