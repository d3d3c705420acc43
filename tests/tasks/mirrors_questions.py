"""What is asked in the mirrors: every question with its right and its wrong answer, and what is shown with it.

A question stands once in all mirrors, so that it and what is shown tell the answer. Enough of them have the answer
"yes" that one who always says so has a score of his own.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

POPE_SPLITS = ("adversarial", "popular", "random")
MME_OBJECTS = ("existence", "count", "position", "color")
MME_PERCEPTION = (*MME_OBJECTS, "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
MME_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SEED_FRAMES = 8


@dataclass(frozen=True)
class Asked:
    """options: of a question of choice; the answers are then two of them, given by their letters.

    shown: names of pictures, or of one video; a picture of the question's own by default.
    """

    question: str
    right: str
    wrong: str
    options: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()

    @property
    def pictures(self) -> tuple[str, ...]:
        return self.shown or (self.question,)

    @property
    def letter(self) -> str:
        return "ABCD"[self.options.index(self.right)]


def picture(name: str) -> Image.Image:
    """A block on a plain ground, both coloured after the name; the size too, as few datasets have only one."""
    red, green, blue, more = zlib.crc32(name.encode()).to_bytes(4, "big")
    image = Image.new("RGB", (48 + more % 16, 40 + red % 16), (red, green, blue))
    image.paste((255 - green, 255 - blue, more), (8, 8, 16 + blue % 16, 16 + green % 16))
    return image


def scenes(video: str) -> list[tuple[int, ...]]:
    """The colours of the two still scenes of a video."""
    return [picture(f"{video} {scene}").getpixel((0, 0)) for scene in range(2)]


def yes_or_no(question: str, right: str, *shown: str) -> Asked:
    return Asked(question, right, "no" if right == "yes" else "yes", shown=shown)


def _pope(split: str) -> tuple[Asked, ...]:
    answers = {"chair": "yes", "dog": "no", "cup": "yes", "train": "no"}
    return tuple(yes_or_no(f"Is there a {thing} in the {split} image?", right) for thing, right in answers.items())


def _mme(category: str) -> tuple[Asked, Asked]:
    """The pair of one image: the same asked rightly and wrongly."""
    asked = f"Does this picture of {category} show a"
    return yes_or_no(f"{asked} ship?", "yes", category), yes_or_no(f"{asked} horse?", "no", category)


def _on_video(name: str, right: str, wrong: str, question: str) -> Asked:
    return Asked(question, right, wrong, shown=(name,))


QUESTIONS: Mapping[str, tuple[Asked, ...]] = {
    "vqav2": (
        yes_or_no("Is the bus parked?", "yes"),
        Asked("What color is the hydrant?", "red", "blue"),
        Asked("How many kites are in the sky?", "2", "5"),
        Asked("What is the man riding?", "wave", "horse"),
    ),
    "gqa": (
        Asked("Who is wearing a hat?", "boy", "woman", shown=("park",)),
        yes_or_no("Is the bench made of wood?", "yes", "park"),
        Asked("On which side is the lamp?", "left", "right", shown=("room",)),
        yes_or_no("Are there any rugs?", "no", "room"),
    ),
    "vizwiz": (
        yes_or_no("Is this shirt clean?", "yes"),
        Asked("What kind of soup is this?", "tomato", "chicken"),
        Asked("Can you tell me what this says?", "unanswerable", "milk"),
        Asked("Which button is start?", "green", "top"),
        Asked("What brand is this cereal?", "nature valley", "unsuitable"),
    ),
    "sciqa": (
        Asked("Which of these states is farthest north?", "Maine", "Ohio", ("Ohio", "Utah", "Maine")),
        Asked("Do these magnets attract or repel?", "repel", "attract", ("attract", "repel")),
        Asked("Which tree is taller?", "the oak", "the pine", ("the oak", "the pine")),
        Asked("Which sample is hottest?", "sample d", "sample a", ("sample a", "sample b", "sample c", "sample d")),
    ),
    "textvqa": (
        yes_or_no("Does the sign say stop?", "yes"),
        Asked("What number is on the jersey?", "21", "12"),
        Asked("What is the name of the shop?", "harbour books", "corner cafe"),
    ),
    **{f"pope_{split}": _pope(split) for split in POPE_SPLITS},
    "mme": tuple(one for category in MME_PERCEPTION + MME_COGNITION for one in _mme(category)),
    "mmbench": (
        Asked("Which shape is drawn?", "circle", "star", ("square", "circle", "star", "line")),
        Asked("What will the ball do next?", "fall", "fly", ("fall", "fly")),
        Asked("What is the weather like?", "snowy", "sunny", ("sunny", "rainy", "snowy")),
    ),
    "seed": (
        Asked("How many towels hang there?", "Three", "One", ("One", "Two", "Three", "Four")),
        Asked("What is on the table?", "A vase", "A lamp", ("A vase", "A lamp", "A book", "A plate")),
        Asked("Where is the cat?", "On the roof", "Under a car", ("Under a car", "Indoors", "On the roof", "In a bag")),
        Asked("Which room is this?", "Kitchen", "Garage", ("Garage", "Attic", "Cellar", "Kitchen")),
    ),
    "seed_video": (
        Asked("What is done with the bottle?", "Opened", "Thrown", ("Thrown", "Opened", "Filled", "Washed")),
        Asked("What does the cook do first?", "Peels", "Fries", ("Peels", "Fries", "Boils", "Bakes")),
    ),
    "mmvet": (
        Asked("Which numbers solve the equation?", "-1 and -5", "4"),
        Asked("Which dish is shown?", "a pie", "a salad"),
        yes_or_no("Is the shop open at noon?", "yes"),
        Asked("What is the total on the receipt?", "17.50", "3.20"),
    ),
    "docvqa": (
        Asked("What is the date on the letter?", "12 May 1998", "unknown"),
        yes_or_no("Is the form signed?", "yes"),
        Asked("Who is the sender?", "Arthur Pym", "Ligeia"),
        Asked("What is the invoice total?", "$ 430.00", "none"),
    ),
    "infovqa": (
        Asked("What share of people recycle?", "46%", "none"),
        Asked("Which continent is largest?", "Asia", "Europe"),
        Asked("How many sources are listed?", "7", "3"),
        Asked("Which two fruits are shown?", "apple, pear", "grape"),
        yes_or_no("Is the population growing?", "yes"),
    ),
    "chartqa": (
        yes_or_no("Is the blue bar higher than the red bar?", "yes"),
        Asked("What is the value of the last bar?", "62.5", "80"),
        Asked("Which country has the longest bar?", "Norway", "Chile"),
        Asked("In what year did sales peak?", "2016", "1816"),
    ),
    "ocrbench": (
        Asked("What is written in the regular image?", "MARKET", "harbour"),
        Asked("What is written in the irregular image?", "Exit", "harbour"),
        Asked("What is written in the artistic image?", "jazz", "harbour"),
        Asked("What is written in the handwritten image?", "dear", "harbour"),
        Asked("What is the number in the digit image?", "4711", "308"),
        Asked("What is written in the non-semantic image?", "xqzv", "harbour"),
        yes_or_no("Does the shop sell bread, by its sign?", "yes"),
        Asked("What is the title of the document?", "Annual Report", "harbour"),
        Asked("What is the value of the field total?", "12.30", "308"),
        Asked("Please write out the expression in the image.", "\\frac { 1 } { x }", "x + 1"),
    ),
    "ai2d": (
        Asked("Which stage comes after the egg?", "larva", "adult", ("adult", "pupa", "larva", "egg")),
        Asked("What eats the grass?", "rabbit", "fox", ("rabbit", "fox", "owl", "snake")),
        Asked("What does label c show?", "root", "leaf", ("leaf", "stem", "flower", "root")),
        Asked("Which layer is deepest?", "core", "crust", ("crust", "core", "mantle", "air")),
    ),
    "activitynet-qa": (
        _on_video("1QIUV7WYKXg", "yes", "no", "is the athlete wearing trousers"),
        _on_video("1QIUV7WYKXg", "white", "black", "what color is the ice"),
        _on_video("bmV9lrWLDtU", "2", "9", "how many people are on the boat"),
        _on_video("bmV9lrWLDtU", "fishing", "sleeping", "what are the people on the boat doing"),
    ),
    "msvd-qa": (
        _on_video("-4wsuPCjDBc_5_15", "woman", "dog", "who is slicing a tomato?"),
        _on_video("-4wsuPCjDBc_5_15", "knife", "spoon", "what is the woman cutting with?"),
        _on_video("jfrrO5K_vKM_55_65", "yes", "no", "is a monkey fighting?"),
        _on_video("jfrrO5K_vKM_55_65", "two", "nine", "how many monkeys are there?"),
        _on_video("jlahRlo4jlU_30_36", "guitar", "drum", "what does a man play?"),
    ),
    "msrvtt-qa": (
        _on_video("video7010", "yes", "no", "is a chef cooking?"),
        _on_video("video7011", "red", "blue", "what color is the car that is driven?"),
    ),
}
