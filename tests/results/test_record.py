"""The run record: what is written can be read again, and what cannot be read is named in one sentence."""

import errno
import json
import math
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coremat.errors import OutputError, RecordError
from coremat.results.record import eval as module
from coremat.results.record.eval import ROW_FIELDS, Record, Row, read_document, read_samples, write_text_atomic
from coremat.results.record.methods import shortens

ROW = Row(method="dense", task="shapes", metric="exact_match", score=93.1, samples=2000)
RECORD = Record("tiny", (ROW, replace(ROW, method="corematching", stderr=0.6)), {"beta": 0.4}, {"device": "cpu"})


def document(**changes):
    rows = [asdict(row) for row in RECORD.rows]
    whole = {"schema": 3, "kind": "eval", "model": "tiny", "rows": rows, "config": {}, "environment": {}}
    return whole | changes


def save(folder: Path, content: object) -> Path:
    path = folder / "record.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_record_comes_back_from_folder_and_file(tmp_path):
    path = RECORD.write(tmp_path / "new" / "run")
    assert path == tmp_path / "new" / "run" / "record.json"
    assert Record.read(path) == RECORD
    assert Record.read(path.parent) == RECORD


def test_written_names_are_the_agreed_ones(tmp_path):
    written = json.loads(RECORD.write(tmp_path).read_text())
    assert list(written) == ["schema", "kind", "model", "rows", "config", "environment"]
    assert (written["schema"], written["kind"]) == (3, "eval")
    assert " ".join(written["rows"][0]) == (
        "method task metric score stderr samples image_tokens image_tokens_kept neurons neurons_kept ffn_read_mib "
        "prefill_tflops kv_cache_mib first_token_ms decode_ms_per_token selection_ms agreement_with_dense "
        "hard_score hard_samples"
    )
    assert written["rows"][0]["stderr"] is None


def test_a_record_of_schema_1_is_read_under_the_names_of_today(tmp_path):
    """There the time to the first token had the name of a bench's prefill."""
    timed = replace(ROW, first_token_ms=7.5)
    old = {"prefill_ms" if name == "first_token_ms" else name: value for name, value in asdict(timed).items()}
    save(tmp_path, document(schema=1, rows=[old]))
    assert Record.read(tmp_path).rows == (timed,)
    assert json.loads(Record.read(tmp_path).write(tmp_path).read_text())["rows"][0]["first_token_ms"] == 7.5


def test_a_record_of_schema_2_has_no_hard_questions(tmp_path):
    row = replace(ROW, agreement_with_dense=98.5)
    old = {name: value for name, value in asdict(row).items() if not name.startswith("hard")}
    save(tmp_path, document(schema=2, rows=[old], config={"seed": 3}))
    assert Record.read(tmp_path).rows == (row,)
    assert Record.read(tmp_path).config == {"seed": 3}


REFERENCE = Path(__file__).parents[2] / "results" / "reference"


@pytest.mark.parametrize("name", ["default", "gate", "methods", "prune-layer"])
def test_the_times_of_committed_records_are_read(name):
    written = json.loads((REFERENCE / name / "record.json").read_text())
    assert [row.first_token_ms for row in Record.read(REFERENCE / name).rows] == [
        row["prefill_ms" if written["schema"] == 1 else "first_token_ms"] for row in written["rows"]
    ]


COMMITTED = sorted(
    path.parent.name for path in REFERENCE.glob("*/record.json") if json.loads(path.read_text())["kind"] == Record.kind
)


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_records_say_what_each_method_shortens(name):
    record = Record.read(REFERENCE / name)
    for typed in {row.method for row in record.rows}:
        first = typed.partition(":")[0]
        neurons_alone = {"core-neurons", "random-neurons", "griffin", "energy-neurons"}
        neurons_alone |= {"cats", "compensated-neurons", "predictor", "teal", "two-level", "wina"}
        whole = neurons_alone | {"dense", "corematching-released", "oracle-neurons"}
        assert shortens(record.config, typed, "tokens") == (first not in whole)
        assert shortens(record.config, typed, "neurons") == (first in neurons_alone | {"corematching"})


SCHEMA_1 = {"tokens": "knee", "token_score": "core-neurons", "neurons": "all", "alpha": 0.2, "prune_layer": 2}


@pytest.mark.parametrize(
    ("typed", "fields", "options", "shorter", "slot"),
    [
        ("core-tokens:alpha=0.2", {}, {"tokens": "knee"}, (True, False), "decoder layer"),
        ("dense", {"tokens": "all"}, {}, (False, False), "none"),
        ("fastv+core-neurons", {"neurons": "core"}, {}, (True, True), "decoder layer and neurons"),
        ("divprune", {"prune_layer": 0, "positions": "auto"}, {"positions": "auto"}, (True, False), "before decoder"),
        ("divprune", {"prune_layer": 0, "positions": "reindexed"}, {"positions": "restart"}, (True, False), None),
        ("core-tokens", {"positions": "auto"}, {"positions": "original"}, (True, False), "decoder layer"),
        ("oracle-neurons", {"tokens": "all", "neurons": "oracle"}, {}, (False, False), "neurons"),
        ("core-neurons", {"neurons": "core", "neurons_in_prefill": True}, {"prefill_from": 2}, (True, True), None),
        ("corematching-released", {"tokens": "all", "released": True}, {}, (False, False), "cache"),
    ],
)
def test_methods_of_schema_1_are_read_as_those_of_today(tmp_path, typed, fields, options, shorter, slot):
    save(tmp_path, document(schema=1, rows=[], config={"methods": {typed: SCHEMA_1 | fields}, "seed": 0}))
    config = Record.read(tmp_path).config
    described = config["methods"][typed]
    assert (described["name"], config["seed"]) == (typed.partition(":")[0], 0)
    assert described["options"].items() >= options.items()
    assert not {"token_score", "neurons", "released", "neurons_in_prefill"} & set(described["options"])
    assert tuple(described["shortens"].values()) == shorter
    assert described["slot"] == (slot or described["slot"])


numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**9), 10**9)


@settings(deadline=None, max_examples=30)
@given(score=numbers, first_token_ms=numbers, samples=st.integers(0), method=st.text(), model=st.text())
def test_any_numbers_and_names_come_back(tmp_path_factory, score, first_token_ms, samples, method, model):
    row = Row(method=method, task="t", metric="m", score=score, first_token_ms=first_token_ms, samples=samples)
    folder = tmp_path_factory.mktemp("run")
    Record(model, (row,)).write(folder)
    assert Record.read(folder) == Record(model, (row,))


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float64("nan"), np.float32(-np.inf)])
def test_number_that_is_none_was_not_measured(value):
    assert replace(ROW, stderr=value).stderr is None


def test_numpy_numbers_become_plain(tmp_path):
    row = replace(ROW, score=np.float64(50.5), samples=np.int64(7))
    assert (type(row.score), type(row.samples)) == (float, int)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("score", "93", "score is '93', and must be a number or null"),
        ("score", True, "score is True"),
        ("samples", 1.5, "samples is 1.5, and must be a whole number from 0"),
        ("samples", -1, "samples is -1"),
        ("samples", None, "samples is None"),
        ("task", 3, "task is 3, and must be a text"),
    ],
)
def test_row_refuses_wrong_types(field, value, message):
    with pytest.raises(RecordError, match=message):
        replace(ROW, **{field: value})


def test_config_may_hold_paths(tmp_path):
    Record("tiny", (), {"output": Path("runs/a")}).write(tmp_path)
    assert Record.read(tmp_path).config == {"output": "runs/a"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("\x00", "is not JSON"),
        ("[1]", r"it holds \[1\] where an object is needed"),
        (document(schema=4), "has schema 4, and this coremat reads schemas 1 to 3: update coremat"),
        (document(schema=0), "has schema 0, and this coremat reads schemas 1 to 3$"),
        (document(schema=1), "row 1 lacks prefill_ms; null stands for"),
        (document(schema="1"), "'schema' is \"1\", and must be a whole number"),
        (document(schema=True), "'schema' is true"),
        (document(kind="bench"), "of kind 'bench', and one of kind 'eval' is needed"),
        (document(rows={}), "'rows' is {}, and must be a list"),
        (document(rows=[7]), "row 1 is 7, and must be an object"),
        (document(rows=[asdict(ROW), {**asdict(ROW), "score": "high"}]), "row 2: score is 'high'"),
        (document(model=None), "'model' is null, and must be a text"),
        (document(model=["x" * 100]), r"x{30,} \.\.\., and must be a text"),
    ],
)
def test_broken_record_is_named(tmp_path, content, message):
    path = save(tmp_path, content)
    with pytest.raises(RecordError, match=message) as caught:
        Record.read(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["schema", "kind", "model", "rows", "config", "environment"])
def test_missing_field_is_named(tmp_path, name):
    content = document()
    del content[name]
    save(tmp_path, content)
    with pytest.raises(RecordError, match=f"lacks the field '{name}'"):
        Record.read(tmp_path)


@pytest.mark.parametrize("name", ROW_FIELDS)
def test_missing_row_field_is_named(tmp_path, name):
    content = document()
    del content["rows"][1][name]
    save(tmp_path, content)
    with pytest.raises(RecordError, match=f"row 2 lacks {name}; null stands for"):
        Record.read(tmp_path)


def test_unknown_keys_are_left_out(tmp_path):
    content = document(note="kept by another tool")
    content["rows"][0]["energy_j"] = 3.0
    save(tmp_path, content)
    assert Record.read(tmp_path).rows == RECORD.rows


def test_record_that_is_not_there(tmp_path):
    with pytest.raises(RecordError, match=r"cannot read the record .*: No such file"):
        Record.read(tmp_path)


def test_another_kind_is_for_who_asks_for_it(tmp_path):
    path = save(tmp_path, document(kind="bench", rows=[{"phase": "prefill"}]))
    assert read_document(path, "bench")["rows"] == [{"phase": "prefill"}]


def samples(folder: Path, content: bytes) -> Path:
    (folder / "samples.jsonl").write_bytes(content)
    return folder


def test_samples_up_to_the_last_whole_line(tmp_path):
    frame = read_samples(samples(tmp_path, b'{"task": "a", "correct": 1}\n{"task": "b\xe2\x80\xa8"}\n{"task": "c\xe2'))
    assert frame["task"].tolist() == ["a", "b\u2028"]
    assert frame["correct"].isna().tolist() == [False, True]


@pytest.mark.parametrize("content", [b"", b'{"task": "a"}'])
def test_no_whole_sample_is_an_empty_frame(tmp_path, content):
    assert read_samples(samples(tmp_path, content)).empty


@settings(deadline=None)
@given(cut=st.integers(0, 200))
def test_samples_cut_anywhere(tmp_path_factory, cut):
    lines = [json.dumps({"question": n, "answer": "ü" * n}, ensure_ascii=False) + "\n" for n in range(6)]
    content = "".join(lines).encode()[:cut]
    frame = read_samples(samples(tmp_path_factory.mktemp("run"), content))
    assert len(frame) == content.count(b"\n")


def test_broken_line_among_samples_is_named(tmp_path):
    with pytest.raises(RecordError, match=r"samples\.jsonl: line 2 is not JSON"):
        read_samples(samples(tmp_path, b'{"a": 1}\n{"a":\n{"a": 3}\n'))
    with pytest.raises(RecordError, match=r"line 1 is \[1\], and must be an object"):
        read_samples(samples(tmp_path, b"[1]\n"))
    with pytest.raises(RecordError, match="cannot read the answers"):
        read_samples(tmp_path / "nowhere")


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = write_text_atomic(tmp_path / "record.json", "old")
    monkeypatch.setattr(module.os, call, no_space)
    with pytest.raises(OutputError, match=r"cannot write .*record\.json: No space left on device"):
        write_text_atomic(path, "new" * 10_000)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["record.json"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_text_atomic(tmp_path / "record.json", "old")
    monkeypatch.setattr("builtins.open", lambda *_, real=open: real("/dev/full", "wb"))
    with pytest.raises(OutputError, match="No space left"):
        write_text_atomic(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    path = write_text_atomic(tmp_path / "record.json", "old")
    monkeypatch.setattr(module.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["record.json"]


def test_data_is_on_the_disk_before_it_takes_the_place(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(module.os, "fsync", lambda _: calls.append("fsync"))
    monkeypatch.setattr(module.os, "replace", lambda *_: calls.append("replace"))
    write_text_atomic(tmp_path / "record.json", "text")
    assert calls == ["fsync", "replace"]


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        RECORD.write(tmp_path / "run")


def test_written_file_is_readable_like_any_other(tmp_path):
    (tmp_path / "plain").write_text("")
    path = write_text_atomic(tmp_path / "atomic", "a\r\nb")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert path.read_bytes() == b"a\r\nb"
