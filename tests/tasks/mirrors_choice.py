"""The mirrors' rows of questions of yes or no and of choice: what is asked, in the datasets' own columns."""

from datasets import List, Value
from mirrors_questions import MME_COGNITION, MME_PERCEPTION, POPE_SPLITS, QUESTIONS, SEED_FRAMES, Asked, picture
from mirrors_table import PICTURE, TEXT, TEXTS, Row, Table, of_each, shown, table, texts

NOT_GIVEN = "nan"  # what MMBench has in place of an option or a hint


def pope() -> list[Table]:
    columns = {**texts("id", "question_id", "question", "answer", "image_source"), "image": PICTURE, "category": TEXT}

    def rows(split: str) -> list[Row]:
        def row(number: int, one: Asked) -> Row:
            asked = {"id": str(number), "question_id": str(number + 1), "question": one.question, "answer": one.right}
            return {**asked, "image_source": f"COCO_val2014_{number}", "image": shown(one), "category": split}

        return of_each(f"pope_{split}", row)

    every = [row for split in POPE_SPLITS for row in rows(split)]
    splits = [one for split in POPE_SPLITS for one in table("POPE", split, columns, rows(split), "Full")]
    return table("POPE", "test", columns, every) + splits


def mme() -> list[Table]:
    columns = {"question_id": TEXT, "image": PICTURE, **texts("question", "answer", "category")}
    suffix = " Please answer yes or no."
    categories = [category for category in MME_PERCEPTION + MME_COGNITION for _ in range(2)]

    def row(number: int, one: Asked) -> Row:
        asked = {"question": one.question + suffix, "answer": one.right.capitalize()}
        name = f"{categories[number]}/0001.png"
        return {"question_id": name, "image": shown(one), **asked, "category": categories[number]}

    return table("MME", "test", columns, of_each("mme", row))


def sciqa() -> list[Table]:
    columns = {
        "image": PICTURE,
        "question": TEXT,
        "choices": TEXTS,
        "answer": Value("int8"),
        **texts("hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution"),
    }

    def row(number: int, one: Asked) -> Row:
        choices, answer = list(one.options), one.options.index(one.right)
        hint = "" if number else "Read the map."
        return {"image": shown(one), "question": one.question, "choices": choices, "answer": answer, "hint": hint}

    return table("ScienceQA", "test", columns, of_each("sciqa", row), "ScienceQA-IMG")


def mmbench() -> list[Table]:
    columns = {
        "index": Value("int64"),
        **texts("question", "hint", "answer", "A", "B", "C", "D", "category"),
        "image": PICTURE,
        **texts("source", "L2-category", "comment", "split"),
    }

    def row(number: int, one: Asked, turn: int) -> Row:
        options = one.options[turn:] + one.options[:turn]
        return {
            "index": 241 + number + turn * 10**6,
            "question": one.question,
            "hint": NOT_GIVEN if number else "The picture is a drawing.",
            "answer": "ABCD"[options.index(one.right)],
            **dict(zip("ABCD", (*options, NOT_GIVEN, NOT_GIVEN), strict=False)),
            "category": "image_scene",
            "image": shown(one),
            "L2-category": "coarse_perception",
            "comment": NOT_GIVEN,
            "split": "dev",
        }

    asked = list(enumerate(QUESTIONS["mmbench"]))
    rows = [row(number, one, turn) for turn in range(4) for number, one in asked if turn < len(one.options)]
    return table("MMBench", "dev", columns, rows, "en")


def seed() -> list[Table]:
    columns = {
        **texts("answer", "choice_a", "choice_b", "choice_c", "choice_d", "data_id", "data_type"),
        **texts("question", "question_id"),
        "question_type_id": Value("int16"),
        "image": List(PICTURE),
        "segment": List(Value("int64")),
    }

    def row(kind: str, number: int, one: Asked) -> Row:
        frames = [f"{one.question} {frame}" for frame in range(SEED_FRAMES)] if kind == "video" else one.pictures
        return {
            "answer": one.letter,
            **{f"choice_{letter}": option for letter, option in zip("abcd", one.options, strict=True)},
            "data_type": kind,
            "question": one.question,
            "question_id": str(number),
            "question_type_id": 10 if kind == "video" else 1,
            "image": [picture(name) for name in frames],
            "segment": [2, 9] if kind == "video" else [],
        }

    videos = of_each("seed_video", lambda number, one: row("video", 100 + number, one))
    images = of_each("seed", lambda number, one: row("image", number, one))
    return table("SEED-Bench", "test", columns, [*images[:2], *videos, *images[2:]])


def ai2d() -> list[Table]:
    columns = {"question": TEXT, "options": TEXTS, "answer": TEXT, "image": PICTURE}

    def row(number: int, one: Asked) -> Row:
        answer = str(one.options.index(one.right))
        return {"question": one.question, "options": list(one.options), "answer": answer, "image": shown(one)}

    return table("ai2d", "test", columns, of_each("ai2d", row))
