"""The bundled data: what it is made from, that it is whole, and that no scene is in two splits."""

import importlib.util
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from transformers import AutoTokenizer

import coremat.tasks
from coremat.models.known import bundled_folder
from coremat.tasks.bundled.build_data import LISTED_FROM, SHAPES_SPLITS, easyvqa_rows, shapes_rows, write_parquet
from coremat.tasks.bundled.shapes.generator import KINDS, make_scene, split_of

FOLDER = Path(coremat.tasks.__file__).parent
FILES = {
    "easyvqa": FOLDER / "bundled" / "easyvqa" / "data" / "easyvqa.parquet",
    "test": FOLDER / "bundled" / "shapes" / "data" / "test.parquet",
    "validation": FOLDER / "bundled" / "shapes" / "data" / "validation.parquet",
}
needs_package = pytest.mark.skipif(not importlib.util.find_spec("easy_vqa"), reason="needs the package easy-vqa")


def rows_of(name: str) -> list[dict]:
    return pyarrow.parquet.read_table(FILES[name]).to_pylist()


def by_id(rows: list[dict]) -> dict[str, dict]:
    return {row["id"]: row for row in rows}


def pixels(row: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"))


@needs_package
def test_easyvqa_is_the_official_test_split() -> None:
    stored, official = rows_of("easyvqa"), list(easyvqa_rows())
    assert len(stored) == 9673
    assert by_id(stored) == by_id(official)
    assert [row["id"] for row in stored] != [row["id"] for row in official], "not shuffled"


@needs_package
def test_easyvqa_reads_the_package_as_the_package_reads_itself() -> None:
    import easy_vqa

    questions, answers, images = easy_vqa.get_test_questions()
    paths = easy_vqa.get_test_image_paths()
    stored = by_id(rows_of("easyvqa"))
    for number in range(0, 9673, 97):
        row = stored[f"test-{number}"]
        assert (row["question"], row["answer"]) == (questions[number], answers[number])
        assert np.array_equal(pixels(row), np.asarray(Image.open(paths[images[number]]).convert("RGB")))


@needs_package
def test_easyvqa_shares_no_image_with_the_training_split() -> None:
    training = {row["image"]["bytes"] for row in easyvqa_rows("train")}
    test = {row["image"]["bytes"] for row in rows_of("easyvqa")}
    assert len(test) == 1000
    assert not training & test


@pytest.mark.parametrize("split", SHAPES_SPLITS)
def test_shapes_is_what_the_generator_makes(split: str) -> None:
    stored, made = by_id(rows_of(split)), by_id(list(shapes_rows(split)))
    assert list(stored) != list(made), "not shuffled"
    assert stored.keys() == made.keys()
    for key, row in stored.items():
        assert [row[name] for name in ("question", "answer", "kind")] == [
            made[key][name] for name in ("question", "answer", "kind")
        ]


@pytest.mark.parametrize(("split", "least"), [("test", 2400), ("validation", 1200)])
def test_shapes_has_every_kind_of_question(split: str, least: int) -> None:
    rows = rows_of(split)
    assert len(rows) >= least
    kinds = Counter(row["kind"] for row in rows)
    assert set(kinds) == set(KINDS)
    scenes = [make_scene((SHAPES_SPLITS[split][0], number), split=split) for number in range(SHAPES_SPLITS[split][1])]
    assert kinds["listing"] == sum(len(scene.things) >= LISTED_FROM for scene in scenes)


@pytest.mark.parametrize("split", list(SHAPES_SPLITS))
def test_listing_answers_are_long_enough_to_show_decoding(split: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bundled_folder())
    lengths = [len(tokenizer(" " + row["answer"])["input_ids"]) for row in rows_of(split) if row["kind"] == "listing"]
    assert min(lengths) >= 10
    assert max(lengths) <= 40


def test_no_scene_is_in_two_splits() -> None:
    """The split follows from what is to be seen, for the bundled scenes as for those that training draws."""
    seen = {}
    for split, (seed, count) in SHAPES_SPLITS.items():
        seen[split] = {make_scene((seed, number), split=split).things for number in range(count)}
        assert {split_of(things) for things in seen[split]} == {split}
    training = {make_scene((0, number)).things for number in range(2000)}
    assert {split_of(things) for things in training} == {"train"}
    assert not seen["test"] & seen["validation"]
    assert not training & (seen["test"] | seen["validation"])


def test_no_image_is_in_two_splits() -> None:
    images = [{row["image"]["bytes"] for row in rows_of(split)} for split in SHAPES_SPLITS]
    assert not images[0] & images[1]


@pytest.mark.parametrize("name", FILES)
def test_the_first_rows_are_a_sample_of_all(name: str) -> None:
    images = {row["image"]["path"] for row in rows_of(name)[:100]}
    assert len(images) > 40


def test_an_image_is_stored_once_and_the_files_are_small() -> None:
    for path in FILES.values():
        assert path.stat().st_size < 3_000_000
    table = pyarrow.parquet.ParquetFile(FILES["easyvqa"]).metadata.row_group(0)
    images = [table.column(n) for n in range(table.num_columns) if table.column(n).path_in_schema == "image.bytes"]
    distinct = sum(map(len, {row["image"]["bytes"] for row in rows_of("easyvqa")}))
    assert images[0].total_uncompressed_size < 1.2 * distinct


def test_building_twice_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = [row for row, _ in zip(shapes_rows("validation"), range(24), strict=False)]
        write_parquet(rows, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_licence_of_easyvqa_lies_beside_it() -> None:
    notice = (FILES["easyvqa"].parent / "LICENSE.easy-vqa.txt").read_text()
    assert "MIT License" in notice
    assert "Victor Zhou" in notice
