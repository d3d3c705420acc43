"""The **shapes** data: scenes of several objects on noisy ground, with questions about them.

A scene is a 3 x 3 grid of 32 px cells on a 96 px image; two to four cells hold an object: a coloured
shape, or a sign with a digit or a short word on it. "Reading order" is row by row, left to right.
Everything follows from one seed. What is to be seen (objects and their cells, without noise and jitter)
decides the split that a scene belongs to, so no scene of one split can appear in another.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

IMAGE_SIZE = 96
GRID = 3
CELL = IMAGE_SIZE // GRID

COLORS = {
    "red": (222, 40, 44),
    "green": (40, 168, 60),
    "blue": (42, 80, 226),
    "yellow": (240, 218, 40),
    "purple": (150, 50, 190),
    "orange": (245, 140, 26),
    "cyan": (50, 210, 222),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")
SIGN = "sign"
DIGITS = tuple("0123456789")
WORDS = ("cat", "dog", "sun", "box", "key", "map", "pen", "hat", "jam", "fox", "zip", "web", "oil", "gum", "ice", "bus")
NUMBERS = ("zero", "one", "two", "three", "four")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
KINDS = ("color", "shape", "count", "existence", "location", "relation", "reading", "listing")
EASY_KINDS = tuple(kind for kind in KINDS if kind != "listing")  # asked again once every kind has been


@dataclass(frozen=True)
class Thing:
    """One object: where it stands (`cell` counts in reading order), what it is, and its colour or text."""

    cell: int
    shape: str
    color: str = ""
    text: str = ""

    @property
    def name(self) -> str:
        return SIGN if self.shape == SIGN else f"{self.color} {self.shape}"

    @property
    def row(self) -> int:
        return self.cell // GRID

    @property
    def column(self) -> int:
        return self.cell % GRID


@dataclass(frozen=True)
class Scene:
    """The objects in reading order, and the pixels: uint8 [96, 96, 3]."""

    things: tuple[Thing, ...]
    pixels: np.ndarray
    owner: np.ndarray  # int8 [96, 96]: index of the object that covers a pixel, -1 for ground

    def named(self, name: str) -> list[Thing]:
        return [t for t in self.things if t.name == name]


@dataclass(frozen=True)
class Question:
    kind: str
    question: str
    answer: str


# --- drawing ---------------------------------------------------------------------------------------------


def _outline(shape: str, x: float, y: float, r: float, angle: float) -> list[tuple[float, float]]:
    """Corners of a polygon of radius `r` round (x, y)."""
    if shape == "triangle":
        turns, radii = np.arange(3) * 2 / 3, [r] * 3
    elif shape == "square":
        turns, radii = np.arange(4) / 2 + 0.25, [r] * 4
    elif shape == "star":
        turns, radii = np.arange(10) / 5, [r, 0.42 * r] * 5
    else:  # a cross: twelve corners of two bars
        w = 0.34 * r
        corners = [
            (-w, -r),
            (w, -r),
            (w, -w),
            (r, -w),
            (r, w),
            (w, w),
            (w, r),
            (-w, r),
            (-w, w),
            (-r, w),
            (-r, -w),
            (-w, -w),
        ]
        return [(x + a, y + b) for a, b in corners]
    phi = np.pi * turns - np.pi / 2 + angle
    return [(x + q * np.cos(p), y + q * np.sin(p)) for p, q in zip(phi, radii, strict=True)]


def _draw_sign(draw: ImageDraw.ImageDraw, text: str, x: float, y: float, r: float) -> None:
    draw.rectangle((x - r, y - 0.62 * r, x + r, y + 0.62 * r), fill=(225, 225, 210), outline=(30, 30, 30))
    font = ImageFont.load_default(size=13 if len(text) > 1 else 15)
    draw.text((x, y), text, fill=(20, 20, 20), font=font, anchor="mm")


def _draw_shape(
    draw: ImageDraw.ImageDraw, thing: Thing, fill: tuple[int, ...], x: float, y: float, r: float, angle: float
) -> None:
    box = (x - r, y - r, x + r, y + r)
    if thing.shape == "circle":
        draw.ellipse(box, fill=fill)
    elif thing.shape == "ring":
        draw.ellipse(box, outline=fill, width=max(3, round(0.36 * r)))
    else:
        draw.polygon(_outline(thing.shape, x, y, r, angle), fill=fill)


def _ground(rng: np.random.Generator) -> np.ndarray:
    """Noisy ground: a grey level, a slight tint, and grain of 3 px."""
    base = rng.integers(40, 130) + rng.integers(-14, 15, 3)
    grain = rng.normal(0, 9, (GRID * 11, GRID * 11, 1)).repeat(3, 0).repeat(3, 1)[:IMAGE_SIZE, :IMAGE_SIZE]
    return np.clip(base + grain, 0, 255).astype(np.uint8)


def _render(things: tuple[Thing, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    image = Image.fromarray(_ground(rng))
    owner = Image.new("L", image.size, 0)
    for number, thing in enumerate(things, start=1):
        sign = thing.shape == SIGN
        r = 15.0 if sign else rng.uniform(9, 14)
        slack = CELL / 2 - r
        x = thing.column * CELL + CELL / 2 + rng.uniform(-slack, slack)
        y = thing.row * CELL + CELL / 2 + rng.uniform(-slack, slack)
        draw, mask = ImageDraw.Draw(image), ImageDraw.Draw(owner)
        if sign:
            _draw_sign(draw, thing.text, x, y, r)
            mask.rectangle((x - r, y - 0.62 * r, x + r, y + 0.62 * r), fill=number)
        else:
            fill = tuple(int(v) for v in np.clip(np.array(COLORS[thing.color]) + rng.integers(-12, 13, 3), 0, 255))
            angle = rng.uniform(-0.25, 0.25)
            _draw_shape(draw, thing, fill, x, y, r, angle)
            _draw_shape(mask, thing, (number,), x, y, r, angle)
    return np.asarray(image), np.asarray(owner).astype(np.int8) - 1


def split_of(things: tuple[Thing, ...]) -> str:
    """The only split in which a scene may appear: 1 in 16 is kept for validation, 1 in 16 for the test."""
    bucket = zlib.crc32(repr(things).encode()) % 16
    return {0: "test", 1: "validation"}.get(bucket, "train")


def _arrange(rng: np.random.Generator, least: int, most: int) -> tuple[Thing, ...]:
    """`least` to `most` objects in reading order, at most one of them a sign."""
    count = int(rng.integers(least, most + 1))
    cells = sorted(int(c) for c in rng.choice(GRID * GRID, count, replace=False))
    sign = int(rng.integers(count)) if rng.random() < 0.5 else -1
    things = []
    for number, cell in enumerate(cells):
        if number == sign:
            texts = DIGITS if rng.random() < 0.4 else WORDS
            things.append(Thing(cell, SIGN, text=str(rng.choice(texts))))
        else:
            things.append(Thing(cell, str(rng.choice(SHAPES)), color=str(rng.choice(list(COLORS)))))
    return tuple(things)


def make_scene(seed: int | tuple[int, ...], split: str = "train", least: int = 2, most: int = 4) -> Scene:
    """The scene of this seed in this split; what belongs to another split is drawn again."""
    rng = np.random.default_rng(seed)
    things = _arrange(rng, least, most)
    while split_of(things) != split:
        things = _arrange(rng, least, most)
    pixels, owner = _render(things, rng)
    return Scene(things, pixels, owner)


# --- questions -------------------------------------------------------------------------------------------


def _pick(rng: np.random.Generator, options: list) -> object:
    return options[int(rng.integers(len(options)))]


def _say(rng: np.random.Generator, phrasings: tuple[str, ...], **words: str) -> str:
    return phrasings[int(rng.integers(len(phrasings)))].format(**words)


def _ask_color(scene: Scene, rng: np.random.Generator) -> Question | None:
    shapes = [t.shape for t in scene.things]
    unique = [t for t in scene.things if t.color and shapes.count(t.shape) == 1]
    if not unique:
        return None
    thing = unique[int(rng.integers(len(unique)))]
    phrasings = (
        "what color is the {s}?",
        "which color does the {s} have?",
        "what is the color of the {s}?",
        "the {s} is of which color?",
    )
    return Question("color", _say(rng, phrasings, s=thing.shape), thing.color)


def _ask_shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    colors = [t.color for t in scene.things]
    unique = [t for t in scene.things if t.color and colors.count(t.color) == 1]
    if not unique:
        return None
    thing = unique[int(rng.integers(len(unique)))]
    phrasings = (
        "what shape is the {c} object?",
        "what is the shape of the {c} object?",
        "which shape is {c}?",
        "the {c} object has which shape?",
    )
    return Question("shape", _say(rng, phrasings, c=thing.color), thing.shape)


def _ask_count(scene: Scene, rng: np.random.Generator) -> Question:
    what = int(rng.integers(3))
    if what == 0:
        number, noun = len(scene.things), "objects"
    elif what == 1:
        pool = [t.color for t in scene.things if t.color] if rng.random() < 0.75 else list(COLORS)
        color = str(_pick(rng, pool or list(COLORS)))
        number, noun = sum(t.color == color for t in scene.things), f"{color} objects"
    else:
        pool = [t.shape for t in scene.things if t.color] if rng.random() < 0.75 else list(SHAPES)
        shape = str(_pick(rng, pool or list(SHAPES)))
        number, noun = sum(t.shape == shape for t in scene.things), shape + ("es" if shape == "cross" else "s")
    phrasings = ("how many {n} are there?", "how many {n} do you see?", "count the {n}.", "what is the number of {n}?")
    return Question("count", _say(rng, phrasings, n=noun), NUMBERS[number])


def _ask_existence(scene: Scene, rng: np.random.Generator) -> Question:
    present = rng.random() < 0.5
    colored = [t for t in scene.things if t.color]
    if present and colored:
        name = colored[int(rng.integers(len(colored)))].name
    else:  # half of the absent ones differ from an object in one word only
        near = colored[int(rng.integers(len(colored)))] if colored else None
        while True:
            color, shape = str(_pick(rng, list(COLORS))), str(_pick(rng, list(SHAPES)))
            if near is not None and rng.random() < 0.7:
                color, shape = (near.color, shape) if rng.random() < 0.5 else (color, near.shape)
            name = f"{color} {shape}"
            if not scene.named(name):
                break
    phrasings = ("is there a {n}?", "do you see a {n}?", "does the image show a {n}?", "can a {n} be seen?")
    return Question("existence", _say(rng, phrasings, n=name), "yes" if scene.named(name) else "no")


RELATIONS: dict[str, Callable[[Thing, Thing], bool]] = {
    "left of": lambda a, b: a.column < b.column,
    "right of": lambda a, b: a.column > b.column,
    "above": lambda a, b: a.row < b.row,
    "below": lambda a, b: a.row > b.row,
}


def _unique(scene: Scene) -> list[Thing]:
    """Objects that their name tells apart."""
    names = [t.name for t in scene.things]
    return [t for t in scene.things if names.count(t.name) == 1]


def _ask_location(scene: Scene, rng: np.random.Generator) -> Question | None:
    unique = _unique(scene)
    if not unique:
        return None
    thing = unique[int(rng.integers(len(unique)))]
    phrasings = ("where is the {n}?", "where in the image is the {n}?", "in which place is the {n}?")
    return Question("location", _say(rng, phrasings, n=thing.name), f"{ROWS[thing.row]} {COLUMNS[thing.column]}")


def _direction(a: Thing, b: Thing) -> str:
    """Where `a` stands as seen from `b`: "above", "below left", ..."""
    words = [word.removesuffix(" of") for word in ("above", "below", "left of", "right of") if RELATIONS[word](a, b)]
    return " ".join(words)


def _ask_relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    """By cells, so that the answer is never a matter of a pixel: half of them open, half yes or no."""
    unique = _unique(scene)
    if len(unique) < 2:
        return None
    if rng.random() < 0.5:
        first, second = (unique[i] for i in rng.choice(len(unique), 2, replace=False))
        phrasings = ("where is the {a} from the {b}?", "in which direction from the {b} is the {a}?")
        return Question("relation", _say(rng, phrasings, a=first.name, b=second.name), _direction(first, second))
    cases = [
        (a, word, b)
        for a in unique
        for b in unique
        for word in RELATIONS
        if (a.column != b.column if word.endswith("of") else a.row != b.row)
    ]
    a, word, b = cases[int(rng.integers(len(cases)))]
    closed = ("is the {a} {r} the {b}?", "does the {a} stand {r} the {b}?", "is it true that the {a} is {r} the {b}?")
    question = _say(rng, closed, a=a.name, r=word, b=b.name)
    return Question("relation", question, "yes" if RELATIONS[word](a, b) else "no")


def _ask_reading(scene: Scene, rng: np.random.Generator) -> Question | None:
    signs = [t for t in scene.things if t.shape == SIGN]
    if not signs:
        return None
    phrasings = (
        "what does the sign say?",
        "what is written on the sign?",
        "read the sign.",
        "which text is on the sign?",
    )
    return Question("reading", _say(rng, phrasings), signs[0].text)


def _ask_listing(scene: Scene, rng: np.random.Generator) -> Question:
    phrasings = (
        "list all objects in reading order.",
        "name every object in reading order.",
        "which objects are there, in reading order?",
    )
    return Question("listing", _say(rng, phrasings), ", ".join(t.name for t in scene.things))


ASK: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
    "color": _ask_color,
    "shape": _ask_shape,
    "count": _ask_count,
    "existence": _ask_existence,
    "location": _ask_location,
    "relation": _ask_relation,
    "reading": _ask_reading,
    "listing": _ask_listing,
}


def make_questions(
    scene: Scene,
    seed: int | tuple[int, ...],
    count: int,
    once: tuple[str, ...] = KINDS,
    more: tuple[str, ...] = EASY_KINDS,
) -> list[Question]:
    """`count` questions, no two alike: one of each kind `once` that the scene allows, then of the kinds `more`."""
    rng = np.random.default_rng(seed)
    asked: dict[str, Question] = {}
    kinds = [*rng.permutation(once), *rng.choice(more, 6 * count)]
    for kind in kinds:
        question = ASK[str(kind)](scene, rng)
        if question is not None:
            asked.setdefault(question.question, question)
        if len(asked) == count:
            break
    return list(asked.values())
