"""Training batches of smol-llava: easy-VQA's train split and fresh scenes that grow from one object to four.

Each example is a function of (seed, number) alone: a resumed run sees what it would have seen.
"""

from collections.abc import Iterator

import numpy as np

from coremat.tasks.bundled.shapes.generator import KINDS, Question, Scene, make_questions, make_scene
from coremat.tasks.train_shapes_llava.data import EasyVQA, Example, shapes_example

HARD_KINDS = ("location",) * 3 + ("relation",) * 4 + ("existence", "count", "listing")  # asked more: learned last
EVERY_KIND = 8  # questions of all kinds on a scene; the rest are hard ones
HELD_OUT = 40  # of easy-VQA's train images every 40th is kept for validation
OBJECTS = ((0.04, 1, 1), (0.12, 1, 2), (0.25, 1, 3), (1.0, 2, 4))  # until this share of the steps: least, most


def objects_at(done: float) -> tuple[int, int]:
    """Least and most objects of a scene, when this share of the training is done."""
    return next((least, most) for until, least, most in OBJECTS if done <= until)


def training_images(easy: EasyVQA) -> np.ndarray:
    return np.array([image for image in sorted(easy.questions) if image % HELD_OUT])


def training_example(
    seed: tuple[int, int], easy: EasyVQA, easy_share: float, objects: tuple[int, int], asked: int
) -> Example:
    """An image of easy-VQA by this chance, else a scene, with up to `asked` questions."""
    rng = np.random.default_rng(seed)
    if rng.random() < easy_share:
        return easy.example(int(rng.choice(training_images(easy))), rng, asked)
    scene = make_scene(seed, least=objects[0], most=objects[1])
    return shapes_example(scene, scene_questions(scene, seed, asked))


def scene_questions(scene: Scene, seed: tuple[int, int], asked: int) -> list[Question]:
    every = make_questions(scene, (*seed, 1), min(EVERY_KIND, asked), once=KINDS)
    hard = make_questions(scene, (*seed, 2), asked, once=(), more=HARD_KINDS)
    return list(dict.fromkeys(every + hard))[:asked]


def validation_examples(easy: EasyVQA, scenes: int, images: int) -> Iterator[Example]:
    """Scenes of two to four objects of the validation split with every kind twice, then held-out images of easy-VQA."""
    for number in range(scenes):
        scene = make_scene((7003, number), split="validation")
        yield shapes_example(scene, make_questions(scene, (7003, number, 1), 16, more=KINDS))
    rng = np.random.default_rng(7004)
    held = [image for image in sorted(easy.questions) if image % HELD_OUT == 0]
    for image in held[:images]:
        yield easy.example(image, rng, 10)
