"""The record of a bench: what is derived from raw times, what is compared with what, and what cannot be read."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_bench import bench

from coremat.errors import RecordError
from coremat.results.record.bench import BenchRecord, read_any
from coremat.results.record.bench_rows import MEMORY_FIELDS_BEFORE_SCHEMA_3, PHASES, ROW_FIELDS, BenchMemory, BenchRow
from coremat.results.record.eval import Record, Row

ROW = BenchRow(
    method="corematching",
    decoder="gathered",
    phase="decode",
    batch_size=2,
    layers=4,
    prompt_tokens=610,
    image_tokens=576,
    image_tokens_kept=64,
    neurons=11008,
    neurons_kept=4403,
    new_tokens=64,
    samples_ms=(5.0, 4.0, 6.0, 4.5),
    flops=19e9,
    bytes=9.5e9,
    limit_ms=3.8,
    limit_speedup=1.5,
)
DENSE = replace(ROW, method="dense", samples_ms=(8.0, 6.0, 10.0, 7.0), limit_speedup=1.0)
MEMORY = BenchMemory(method="corematching", batch_size=2, kv_cache_mib=12.25, kv_cache_mib_paper=98.0, total_gb=2.0)


def record(*rows: BenchRow, memory: tuple[BenchMemory, ...] = ()) -> BenchRecord:
    return BenchRecord("m", rows, memory, {"dtype": "bfloat16"}, {"threads": 1})


def projected(row: BenchRow, ms: float) -> BenchRow:
    return replace(row, samples_ms=(), projected_ms=ms)


# --- the file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [bench(), bench(projected=True), bench(batches=(1, 4)), record()])
def test_record_comes_back_from_folder_and_file(tmp_path, made):
    path = made.write(tmp_path / "new" / "run")
    assert path == tmp_path / "new" / "run" / "record.json"
    assert BenchRecord.read(path) == BenchRecord.read(path.parent) == read_any(path) == made


def test_written_names_are_the_agreed_ones(tmp_path):
    written = json.loads(record(ROW, memory=(MEMORY,)).write(tmp_path).read_text())
    assert list(written) == ["schema", "kind", "model", "rows", "memory", "config", "environment"]
    assert (written["schema"], written["kind"]) == (3, "bench")
    assert " ".join(written["rows"][0]) == (
        "method decoder phase batch_size layers prompt_tokens image_tokens image_tokens_kept neurons neurons_kept "
        "new_tokens samples_ms projected_ms flops flops_counted bytes limit_ms limit_speedup"
    )
    assert written["rows"][0]["samples_ms"] == [5.0, 4.0, 6.0, 4.5]
    assert " ".join(written["memory"][0]) == (
        "method decoder batch_size kv_cache_mib kv_cache_mib_paper ffn_gb ffn_read_gb total_gb workspace_mib peak_gb"
    )


@settings(deadline=None, max_examples=30)
@given(samples=st.lists(st.floats(0, 1e9), min_size=1, max_size=12), phase=st.sampled_from(PHASES))
def test_any_samples_come_back(tmp_path_factory, samples, phase):
    row = replace(ROW, samples_ms=samples, phase=phase)
    folder = tmp_path_factory.mktemp("run")
    record(row).write(folder)
    assert BenchRecord.read(folder).rows == (row,)


def test_numpy_numbers_become_plain(tmp_path):
    row = replace(ROW, samples_ms=np.array([1.5, 2.5]), flops=np.float32(3), layers=np.int64(4), limit_ms=math.nan)
    assert row.samples_ms == (1.5, 2.5)
    assert [type(value) for value in (row.samples_ms[0], row.flops, row.layers)] == [float, float, int]
    assert row.limit_ms is None
    record(row).write(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("phase", "decoding", "phase is 'decoding'; accepted: vision, prefill, selection, gathering, decode, end-to-e"),
        ("method", 3, "method is 3, and must be a text"),
        ("decoder", None, "decoder is None, and must be a text"),
        ("batch_size", 0, "batch_size is 0, and must be a whole number from 1"),
        ("layers", 2.5, "layers is 2.5"),
        ("new_tokens", None, "new_tokens is None"),
        ("flops", -1, "flops is -1, and must be a number from 0, or null"),
        ("bytes", "many", "bytes is 'many', and must be a number or null"),
        ("samples_ms", "12", "samples_ms is '12', and must be a list of times"),
        ("samples_ms", 12, "samples_ms is 12"),
        ("samples_ms", (1.0, -2.0), "samples_ms holds -2.0, and must hold times from 0 ms"),
        ("samples_ms", (1.0, math.nan), "samples_ms holds nan"),
        ("samples_ms", (1.0, None), "samples_ms holds None"),
        ("samples_ms", (), "samples_ms has 0 times and projected_ms is None; accepted: measured times or a projected"),
        ("samples_ms", None, "samples_ms has 0 times and projected_ms is None"),
        ("projected_ms", 3.0, "samples_ms has 4 times and projected_ms is 3.0"),
    ],
)
def test_row_refuses(field, value, message):
    with pytest.raises(RecordError, match=message):
        replace(ROW, **{field: value})


@pytest.mark.parametrize(("field", "value"), [("batch_size", 1.5), ("total_gb", -1), ("method", None)])
def test_memory_refuses(field, value):
    with pytest.raises(RecordError, match=f"{field} is {value}"):
        replace(MEMORY, **{field: value})


def document(**changes):
    rows = [asdict(DENSE), asdict(ROW)]
    whole = {"schema": 1, "kind": "bench", "model": "m", "rows": rows, "memory": [asdict(MEMORY)]}
    return whole | {"config": {}, "environment": {}} | changes


def test_what_ffns_read_is_known_since_schema_3(tmp_path):
    memory = asdict(replace(MEMORY, ffn_read_gb=2.5))
    save(tmp_path, document(schema=3, memory=[memory]))
    assert BenchRecord.read(tmp_path).memory[0].ffn_read_gb == 2.5
    del memory["ffn_read_gb"]
    save(tmp_path, document(schema=3, memory=[memory]))
    with pytest.raises(RecordError, match="memory 1 lacks ffn_read_gb; null stands for"):
        BenchRecord.read(tmp_path)
    save(tmp_path, document(schema=2, memory=[memory]))
    assert BenchRecord.read(tmp_path).memory[0].ffn_read_gb is None


def save(folder: Path, content: dict) -> Path:
    path = folder / "record.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("name", ["schema", "kind", "model", "rows", "memory", "config", "environment"])
def test_missing_field_is_named(tmp_path, name):
    content = document()
    del content[name]
    save(tmp_path, content)
    with pytest.raises(RecordError, match=rf"lacks the field '{name}'.*\(a bench also memory\)"):
        BenchRecord.read(tmp_path)


@pytest.mark.parametrize(
    ("part", "names", "which"), [("rows", ROW_FIELDS, "row 1"), ("memory", MEMORY_FIELDS_BEFORE_SCHEMA_3, "memory 1")]
)
def test_missing_field_of_an_entry_is_named(tmp_path, part, names, which):
    for name in names:
        content = document()
        del content[part][0][name]
        save(tmp_path, content)
        with pytest.raises(RecordError, match=f"{which} lacks {name}; null stands for"):
            BenchRecord.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "eval"}, "of kind 'eval', and one of kind 'bench' is needed"),
        ({"schema": 4}, "has schema 4, and this coremat reads schemas 1 to 3: update coremat"),
        ({"rows": [asdict(ROW), asdict(ROW) | {"projected_ms": 1.0}]}, "row 2: samples_ms has 4 times and projected"),
        ({"memory": [7]}, "memory 1 is 7, and must be an object"),
        ({"memory": [asdict(MEMORY) | {"peak_gb": "all"}]}, "memory 1: peak_gb is 'all'"),
    ],
)
def test_broken_record_is_named(tmp_path, changes, message):
    path = save(tmp_path, document(**changes))
    with pytest.raises(RecordError, match=message) as caught:
        BenchRecord.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_read_any_goes_by_the_kind(tmp_path):
    evaluation = Record("m", (Row(method="dense", task="t", metric="m", samples=1),))
    evaluation.write(tmp_path / "eval")
    assert read_any(tmp_path / "eval") == evaluation
    record(ROW).write(tmp_path / "bench")
    assert read_any(tmp_path / "bench" / "record.json") == record(ROW)
    save(tmp_path, document(kind="training"))
    with pytest.raises(RecordError, match="of kind 'training', and one of kind 'eval' or 'bench' is needed"):
        read_any(tmp_path)
    with pytest.raises(RecordError, match=r"cannot read the record .*: No such file"):
        read_any(tmp_path / "nowhere")


# --- what is derived ------------------------------------------------------------------------------------------------


def percentile(samples: tuple[float, ...], share: float) -> float:
    """Of the sorted samples, on the straight line between the two nearest."""
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@given(samples=st.lists(st.floats(0.001, 1e6), min_size=1, max_size=15))
def test_median_and_percentiles(samples):
    row = replace(ROW, samples_ms=samples)
    found = (row.p10_ms, row.median_ms, row.p90_ms)
    assert found == pytest.approx([percentile(samples, share) for share in (0.1, 0.5, 0.9)])


def test_rates_of_a_decode_step():
    assert ROW.median_ms == 4.75
    assert ROW.tokens_per_second == pytest.approx(2 / 0.00475)
    assert ROW.tflops_per_second == pytest.approx(0.019 / 0.00475)
    assert ROW.gb_per_second == pytest.approx(9.5 / 0.00475)
    assert ROW.limit_share == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("phase", "tokens"), [("prefill", 1220), ("end-to-end", 128), ("vision", None), ("selection", None)]
)
def test_tokens_per_second_are_those_of_the_phase(phase, tokens):
    rate = replace(ROW, phase=phase, samples_ms=[500.0]).tokens_per_second
    assert rate == (None if tokens is None else pytest.approx(2 * tokens))


def test_projected_row_has_its_number_and_no_spread():
    row = projected(ROW, 7.6)
    assert (row.projected, row.median_ms, row.p10_ms, row.p90_ms) == (True, 7.6, None, None)
    assert row.limit_share == pytest.approx(0.5)


def test_counted_operations_come_before_the_formula():
    assert ROW.tflop == pytest.approx(0.019)
    assert replace(ROW, flops_counted=20e9).tflop == pytest.approx(0.02)
    assert replace(ROW, flops=None).tflop is None


def test_what_is_not_known_gives_nothing():
    row = replace(ROW, flops=None, bytes=None, limit_ms=None)
    assert (row.tflops_per_second, row.gb_per_second, row.limit_share) == (None, None, None)
    idle = replace(ROW, samples_ms=[0.0])
    assert (idle.tokens_per_second, idle.gb_per_second, idle.limit_share) == (None, None, None)


# --- what is compared -----------------------------------------------------------------------------------------------


def test_speedup_is_median_over_median():
    found = record(DENSE, ROW)
    assert found.speedup(ROW) == pytest.approx(7.5 / 4.75)
    assert found.speedup_share(ROW) == pytest.approx(7.5 / 4.75 / 1.5)
    assert found.speedup(DENSE) == 1.0


def test_speedup_range_is_run_by_run():
    ratios = (8 / 5, 6 / 4, 10 / 6, 7 / 4.5)
    expected = [percentile(ratios, share) for share in (0.1, 0.9)]
    assert record(DENSE, ROW).speedup_range(ROW) == pytest.approx(expected)


def test_speedup_range_of_a_stopped_bench_takes_the_runs_of_both():
    row = replace(ROW, samples_ms=(5.0, 4.0))
    assert record(DENSE, row).speedup_range(row) == pytest.approx([percentile((1.6, 1.5), s) for s in (0.1, 0.9)])


@pytest.mark.parametrize(
    "other",
    [
        {"phase": "prefill"},
        {"batch_size": 1},
        {"layers": 12},
        {"new_tokens": 16},
        {"prompt_tokens": 98},
        {"method": "core-tokens"},
        {"samples_ms": (), "projected_ms": 8.0},
    ],
)
def test_only_the_same_work_is_compared(other):
    found = record(replace(DENSE, **other), ROW)
    assert found.baseline(ROW) is None
    assert (found.speedup(ROW), found.speedup_share(ROW), found.speedup_range(ROW)) == (None, None, None)


def test_projected_rows_are_compared_with_projected_rows():
    found = record(DENSE, ROW, projected(DENSE, 20.0), projected(ROW, 5.0))
    assert found.speedup(projected(ROW, 5.0)) == 4.0
    assert found.speedup(ROW) == pytest.approx(7.5 / 4.75)
    assert found.speedup_range(projected(ROW, 5.0)) is None


def test_dense_is_the_one_decoded_alike_otherwise_the_fastest():
    slow = replace(DENSE, decoder="accelerate offload", samples_ms=[100.0])
    fast = replace(DENSE, decoder="streamed FFN", samples_ms=[50.0])
    sparse = replace(ROW, samples_ms=[5.0])
    assert record(slow, fast, sparse).speedup(sparse) == 10
    assert record(slow, fast, sparse).speedup_over_usual(sparse) == 20
    alike = replace(DENSE, samples_ms=[60.0])
    assert record(slow, fast, alike, sparse).speedup(sparse) == 12
    assert record(alike, sparse).speedup_over_usual(sparse) is None


def test_speedup_over_usual_is_not_said_twice():
    eager, graph = (
        replace(DENSE, decoder=name, samples_ms=[ms]) for name, ms in (("eager generate", 24), ("graph", 8))
    )
    sparse = [replace(ROW, decoder=row.decoder, samples_ms=[4.0]) for row in (eager, graph)]
    found = record(eager, graph, *sparse)
    assert [found.speedup_over_usual(row) for row in (eager, graph, *sparse)] == [None, 3, None, 6]


def test_selection_as_a_share_of_the_dense_prefill():
    prefill = replace(DENSE, phase="prefill", samples_ms=[400.0])
    selection = replace(ROW, phase="selection", samples_ms=[8.0])
    assert record(prefill, selection).prefill_share(selection) == 0.02
    assert record(selection).prefill_share(selection) is None


def test_memory_ratio():
    dense = replace(MEMORY, method="dense", total_gb=3.0)
    assert record(memory=(dense, MEMORY)).memory_ratio(MEMORY) == 1.5
    assert record(memory=(dense, MEMORY)).memory_ratio(dense) == 1
    for other in ({"batch_size": 1}, {"kv_cache_mib": None}, {"total_gb": None}):
        assert record(memory=(replace(dense, **other), MEMORY)).memory_ratio(MEMORY) is None


def test_memory_of_a_decoder_comes_before_that_of_all():
    row = replace(ROW, decoder="graph")
    own, other = replace(MEMORY, decoder="graph", peak_gb=9.0), replace(MEMORY, decoder="eager generate")
    for memory in ((MEMORY, own, other), (own, MEMORY, other)):
        assert record(row, memory=memory).memory_of(row.setup) == own
    assert record(row, memory=(other, MEMORY)).memory_of(row.setup) == MEMORY
    assert record(row, memory=(other,)).memory_of(row.setup) is None


def test_rows_without_a_decoder_belong_to_all_of_their_method():
    vision = replace(ROW, phase="vision", decoder="")
    found = record(vision, ROW, replace(ROW, decoder="graph"), replace(vision, method="dense"))
    assert [(setup.method, setup.decoder) for setup in found.setups()] == [
        ("corematching", "gathered"),
        ("corematching", "graph"),
        ("dense", ""),
    ]
    for setup in found.setups()[:2]:
        assert found.rows_of(setup, "vision") == (vision,)


def test_rows_of_a_phase_are_sorted_by_length():
    rows = [replace(ROW, phase="end-to-end", new_tokens=length) for length in (64, 1, 16)]
    found = record(*rows, ROW)
    assert [row.new_tokens for row in found.rows_of(ROW.setup, "end-to-end")] == [1, 16, 64]


@pytest.mark.parametrize(
    ("config", "environment", "device"),
    [
        ({"device": "titanxp", "profile": {"name": "titanxp"}}, {}, "titanxp"),
        ({"device": "my/card.json", "profile": {"name": "my card"}}, {}, "my card"),
        ({"device": "h200"}, {"gpu": {"name": "NVIDIA H200"}, "device": "cuda:0"}, "h200"),
        ({"device": "auto"}, {"gpu": {"name": "NVIDIA H200"}, "device": "cuda:0"}, "NVIDIA H200"),
        ({"device": "cuda:1"}, {"gpu": "NVIDIA H200"}, "NVIDIA H200"),
        ({"device": "auto"}, {"gpu": None, "device": "cpu"}, "cpu"),
        ({}, {}, ""),
    ],
)
def test_device(config, environment, device):
    assert BenchRecord("m", (), (), config, environment).device == device
