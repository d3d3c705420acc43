"""The bundled tasks' data as parquet: `python -m coremat.tasks.bundled.build_data`, the same rows every time.

easy-VQA comes from the package `easy-vqa` as it is (its own PNG files), shapes from the generator. The rows are
shuffled once, by a fixed seed, so that the first N of them (`--limit N`) are a seeded sample of the whole.
An image is stored once, however many questions are asked about it: the column is dictionary-encoded.
"""

import io
import json
import random
from collections.abc import Iterable, Iterator
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
from PIL import Image

from coremat.tasks.bundled.shapes.generator import make_questions, make_scene

HERE = Path(__file__).parent
ORDER_SEED = 20254
SHAPES_SPLITS = {"test": (7001, 300), "validation": (7002, 150)}  # seed of the scenes, and how many
QUESTIONS_PER_SCENE = 8
LEAST, MOST = 2, 4  # objects in a scene
LISTED_FROM = 3  # objects from which on a scene is asked to be listed

Row = dict[str, Any]


def easyvqa_rows(split: str = "test") -> Iterator[Row]:
    """The questions of easy-VQA's split in the package's order, each with the bytes of its PNG."""
    folder = Path(str(resources.files("easy_vqa"))) / "data" / split
    images = {path.stem: path.read_bytes() for path in (folder / "images").glob("*.png")}
    questions = json.loads((folder / "questions.json").read_text())
    for number, (question, answer, image) in enumerate(questions):
        file = {"bytes": images[str(image)], "path": f"{image}.png"}
        yield {"id": f"{split}-{number}", "image": file, "question": question, "answer": answer}


def shapes_rows(split: str) -> Iterator[Row]:
    """Eight questions on each scene of a split of the generator.

    Two objects are listed in fewer than ten tokens; only longer lists, which show what decoding does, are asked for.
    """
    seed, scenes = SHAPES_SPLITS[split]
    for number in range(scenes):
        scene = make_scene((seed, number), split=split, least=LEAST, most=MOST)
        png = io.BytesIO()
        Image.fromarray(scene.pixels).save(png, "PNG", optimize=True)
        file = {"bytes": png.getvalue(), "path": f"{split}-{number}.png"}
        questions = make_questions(scene, (seed, number, 1), QUESTIONS_PER_SCENE + 1)
        short = len(scene.things) < LISTED_FROM
        kept = [asked for asked in questions if not (short and asked.kind == "listing")][:QUESTIONS_PER_SCENE]
        for index, asked in enumerate(kept):
            words = {"question": asked.question, "answer": asked.answer, "kind": asked.kind}
            yield {"id": f"{split}-{number}-{index}", "image": file, **words}


def write_parquet(rows: Iterable[Row], path: Path) -> int:
    """The rows in their shuffled order; how many there are."""
    ordered = list(rows)
    random.Random(ORDER_SEED).shuffle(ordered)
    names = list(ordered[0])
    kinds = {name: datasets.Image() if name == "image" else datasets.Value("string") for name in names}
    schema = datasets.Features(kinds).arrow_schema
    table = pyarrow.table({name: [row[name] for row in ordered] for name in names}, schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, compression="zstd", dictionary_pagesize_limit=64 << 20)
    return len(ordered)


def write_licence(folder: Path) -> None:
    """The notice that easy-VQA's licence (MIT) asks to be kept with its data."""
    package = metadata.distribution("easy-vqa")
    (path,) = [file for file in package.files or () if file.name == "LICENSE"]
    notice = f"easyvqa.parquet is the test split of easy-vqa {package.version}, unchanged but for its order.\n\n"
    (folder / "LICENSE.easy-vqa.txt").write_text(notice + path.read_text())


def build(folder: Path = HERE) -> None:
    """Every data file of the bundled tasks, under `folder`."""
    count = write_parquet(easyvqa_rows(), folder / "easyvqa" / "data" / "easyvqa.parquet")
    write_licence(folder / "easyvqa" / "data")
    print(f"easyvqa: {count} questions")
    for split in SHAPES_SPLITS:
        count = write_parquet(shapes_rows(split), folder / "shapes" / "data" / f"{split}.parquet")
        print(f"shapes, {split}: {count} questions")


if __name__ == "__main__":
    build()
