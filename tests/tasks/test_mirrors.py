import pytest
from datasets import Dataset
from mirrors import NAMES, TABLES, VIDEO_TASKS, write_mirrors
from mirrors_questions import QUESTIONS, picture
from oracles import video_of

from coremat.preprocessing.video import read_clip
from coremat.tasks.catalogue import TASKS
from coremat.tasks.data.local import files_of, missing, videos_of


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mirrors")
    write_mirrors(folder)
    return folder


def test_a_question_stands_once_in_all_mirrors():
    """As the oracles look for it: as a part of what is asked, whatever the case."""
    asked = [one.question.lower() for every in QUESTIONS.values() for one in every]
    assert not [(one, other) for one in asked for other in asked if one in other and one is not other]


def test_right_and_wrong_differ_and_options_hold_both():
    for every in QUESTIONS.values():
        for one in every:
            assert one.right != one.wrong
            assert not one.options or {one.right, one.wrong} <= set(one.options)
            assert len(set(one.options)) == len(one.options) <= 4


def test_every_picture_is_another():
    names = {name for every in QUESTIONS.values() for one in every for name in one.pictures}
    assert len({picture(name).tobytes() for name in names}) == len(names)


def test_every_task_of_the_paper_has_a_mirror():
    assert set(NAMES) == {name for name, info in TASKS.items() if info.data}


@pytest.mark.parametrize("name", TABLES)
def test_files_hold_the_tables_with_their_types(root, name):
    for table in TABLES[name]():
        written = Dataset.from_parquet(str(root / table.repo / table.place), cache_dir=str(root / "cache"))
        assert written.features == table.features
        assert len(written) == len(table.rows)
        for row, made in zip(written, table.rows, strict=True):
            for column, value in row.items():
                assert same(value, made[column]), (name, column)


def same(value, made):
    if isinstance(made, list):
        return len(value) == len(made) and all(map(same, value, made))
    return value.convert("RGB").tobytes() == made.tobytes() if hasattr(made, "tobytes") else value == made


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_missing(root, name):
    assert missing(root, [TASKS[name]]) == []


def test_some_alone(tmp_path):
    write_mirrors(tmp_path, ["docvqa", "msvd-qa"])
    lacking = {one.task.name for one in missing(tmp_path, [TASKS[name] for name in NAMES])}
    assert lacking == set(NAMES) - {"docvqa", "msvd-qa"}
    assert files_of(tmp_path / "lmms-lab-encoder/DocVQA", "InfographicVQA") == {}


@pytest.mark.parametrize("name", VIDEO_TASKS)
def test_videos_can_be_read_and_told_apart(root, name):
    videos = videos_of(root / TASKS[name].data.path)
    assert {video.removeprefix("v_") for video in videos} == {one.shown[0] for one in QUESTIONS[name]}
    assert all(video_of(read_clip(path, 8)) == video.removeprefix("v_") for video, path in videos.items())
