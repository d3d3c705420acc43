"""The tables of a bench: every number where it belongs, projected ones marked, and nothing where nothing is known."""

import csv
import io
import re
from dataclasses import replace

import pytest
from made_bench import LENGTHS, METHODS, bench
from rich.console import Console

from coremat.results.record.bench import BenchRecord
from coremat.results.record.bench_rows import PHASES
from coremat.results.tables.bench import (
    bench_table,
    decode_table,
    length_table,
    phase_table,
    prefill_table,
    write_bench_tables,
)
from coremat.results.tables.eval import FORMS, Table, render, to_csv, to_latex, to_markdown
from coremat.results.tables.terminal import Fitted, blocks

TABLES = (bench_table, prefill_table, decode_table, phase_table, length_table)
EXACT = {"kv_cache_mib_paper", "prefill_tflops", "decode_gflops"}  # and whatever has limit_ms or limit_speedup


UNKNOWN = {("corematching", "prefill"), ("corematching", "selection")}


def lines_at(width: int, table: Table) -> list[str]:
    file = io.StringIO()
    Console(width=width, file=file, color_system=None).print(Fitted(table))
    return file.getvalue().splitlines()


def raw(table: Table) -> list[dict[str, object]]:
    """The lines of a table as its CSV has them, without empty cells."""
    rows = [dict(zip(table.raw_names, row, strict=True)) for row in table.raw]
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def cells(table: Table, method: str, source: str = "measured") -> dict[str, str]:
    """The cells of the one line of a method as shown."""
    headings = [column.heading.replace("\n", " ") for column in table.columns]
    found = [row for row in table.rows if {method, source} <= set(row)]
    assert len(found) == 1
    return dict(zip(headings, found[0], strict=True))


def test_prefill_half_of_a_method():
    assert cells(prefill_table(bench()), "corematching:beta=0.2") == {
        "source": "measured",
        "method": "corematching:beta=0.2",
        "KV MiB": "49.0",
        "KV as paper": "49.0",
        "FFN GB": "1.73",
        "total GB": "8.73",
        "memory ratio": "1.79",  # 15.66 / 8.73
        "extra MiB": "123",
        "prefill TFLOPs": "0.202",
        "prefill ms": "200",
        "limit ms": "180",
        "% of limit": "90.0",
        "speed- up x": "2.00",
        "limit x": "2.20",
        "choosing % of dense": "2.00",
    }


def test_decode_half_of_a_method():
    assert cells(decode_table(bench()), "corematching:beta=0.2") == {
        "source": "measured",
        "method": "corematching:beta=0.2",
        "decode GFLOPs": "5.00",
        "decode ms/tok": "5.00",
        "limit ms": "4.50",
        "% of limit": "90.0",
        "speed- up x": "2.00",
        "limit x": "2.16",
        "tokens /s": "200",
        "GB/s": "12.0",
        "end to end x": "1.84",  # (500 + 63 * 10) / (300 + 63 * 5)
    }


@pytest.mark.parametrize(
    ("prefill", "decode", "shown"),
    [
        (0.5, 0.9, ""),
        (1.2, 0.85, "1-16"),  # 580 over 500 ms, 708 over 650 at 16, and at 64 1116 over 1130
        (0.5, 1.5, "64"),  # 525 over 650 ms at 16, 1245 over 1130 at 64
        (1.01, 1.01, ""),  # within what a repetition differs by
    ],
)
def test_a_method_that_is_slower_than_dense_is_marked_with_the_answers_at_which_it_is(
    monkeypatch, prefill, decode, shown
):
    monkeypatch.setitem(METHODS, "core-tokens", (prefill, decode, *METHODS["core-tokens"][2:]))
    table = decode_table(bench())
    assert cells(table, "core-tokens").get("slower at", "") == shown
    assert any("over 1.02 of dense's time (core-tokens)" in note for note in table.notes) == bool(shown)
    assert not cells(table, "corematching").get("slower at")


def test_halves_make_the_whole():
    whole = raw(bench_table(bench()))
    halves = zip(raw(prefill_table(bench())), raw(decode_table(bench())), strict=True)
    assert whole == [first | second for first, second in halves]


def test_paper_stands_below_its_method_in_the_same_units():
    table = bench_table(bench())
    order = [(row["source"], row["method"]) for row in raw(table)]
    measured = [("measured", method) for method in METHODS]
    assert order == [measured[0], ("paper", "dense"), *measured[1:], ("paper", "corematching")]
    dense, sparse = (row for row in raw(table) if row["source"] == "paper")
    assert sparse == {
        "source": "paper",
        "method": "corematching",
        "kv_cache_mib_paper": 48.99,
        "ffn_gb": 1.65,
        "total_gb": 8.62,
        "memory_ratio": 1.82,
        "prefill_tflops": 2.1,
        "prefill_ms": pytest.approx(1050),
        "prefill_speedup": pytest.approx(2.23 / 1.05),
        "decode_gflops": pytest.approx(486 / 64),
        "decode_ms_per_token": pytest.approx(4810 / 64),
        "decode_speedup": pytest.approx(44.2 / 4.81),
        "decode_tokens_per_second": pytest.approx(64 / 4.81),
    }
    assert (dense["decode_ms_per_token"], dense["decode_speedup"]) == (pytest.approx(690.625), 1)
    assert any("Table 3, the whole model on a Titan Xp" in note for note in table.notes)


def test_another_model_has_no_row_of_the_paper():
    table = bench_table(bench(model="shapes-llava"))
    assert {row["source"] for row in raw(table)} == {"measured"}
    assert "source" not in [column.heading for column in table.columns]
    assert not any(note.startswith("paper:") for note in table.notes)


# --- projected numbers ----------------------------------------------------------------------------------------------


def is_number(text: str) -> bool:
    return bool(re.fullmatch(r"-?[0-9.]+", text))


def measurable(names: tuple[str, ...]) -> list[int]:
    """The columns whose numbers a projection would not know exactly."""
    exact = {*LABELS, *EXACT, *(name for name in names if name.endswith(("limit_ms", "limit_speedup")))}
    return [at for at, name in enumerate(names) if name not in exact]


LABELS = ("source", "phase", "method", "decoder", "batch_size", "layers", "new_tokens")


@pytest.mark.parametrize("make", TABLES)
def test_every_projected_number_is_marked_in_every_form(make):
    table = make(bench(projected=True, layers=32, device="titanxp"))
    ours = [row for row in table.raw if "projected" in row]
    assert ours
    for row in ours:
        values = [row[at] for at in measurable(table.raw_names) if row[at] is not None]
        assert values
        assert all(str(value).startswith("~") and is_number(str(value)[1:]) for value in values)
    marks = sum(cell.startswith("~") for row in table.rows for cell in row)
    assert marks >= len(ours)
    assert any(note.startswith("~: projected") for note in table.notes)
    assert sum(cell.startswith(" ~") for cell in to_markdown(table).split("|")) == marks
    assert to_latex(table).count(r"\textasciitilde{}") == marks + 1  # and the note
    assert sum(cell.startswith("~") for line in csv.reader(io.StringIO(to_csv(table))) for cell in line) >= marks
    assert "\n".join(lines_at(300, table)).count("~") == marks + 1


@pytest.mark.parametrize("make", TABLES)
def test_no_measured_number_is_marked(make):
    for form in FORMS:
        assert "~" not in render(make(bench()), form)
    assert not any("projected" in note for note in make(bench()).notes)


def test_measured_and_projected_rows_of_one_record_stay_apart():
    both = replace(bench(("dense", "corematching")), rows=bench().rows[:19] + bench(projected=True).rows)
    table = decode_table(both)
    assert cells(table, "dense")["decode ms/tok"] == "10.0"
    assert cells(table, "dense", "projected")["decode ms/tok"] == "~10.0"
    assert cells(table, "corematching", "projected")["speed- up x"] == "~1.56"


# --- what is not there ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", TABLES)
@pytest.mark.parametrize("keep", [0, 1, 3, 8, 12, 20])
def test_a_bench_that_was_stopped_keeps_what_it_has(make, keep):
    stopped = replace(bench(), rows=bench().rows[:keep], memory=bench().memory[: keep // 8])
    table = make(stopped)
    for form in FORMS:
        text = render(table, form)
        assert "None" not in text
        assert "nan" not in text.lower()
    lines_at(120, table)


def test_what_is_not_known_is_an_empty_cell():
    rows = [row for row in bench().rows if (row.method, row.phase) not in UNKNOWN]
    rows = [replace(row, limit_ms=None, limit_speedup=None, bytes=None) for row in rows]
    record = replace(bench(), rows=tuple(rows), memory=())
    prefill, decode = cells(prefill_table(record), "corematching"), cells(decode_table(record), "corematching")
    assert set(prefill.values()) == {"measured", "corematching", ""}
    assert [decode[name] for name in ("decode ms/tok", "limit ms", "% of limit", "limit x", "GB/s")] == [
        "6.40",
        *[""] * 4,
    ]
    assert all(",," in line for line in to_csv(bench_table(record)).splitlines()[1:])


def test_end_to_end_is_at_the_longest_answer_of_all():
    missing = ("corematching", "end-to-end", 64)
    rows = [row for row in bench().rows if (row.method, row.phase, row.new_tokens) != missing]
    table = decode_table(replace(bench(), rows=tuple(rows)))
    assert cells(table, "corematching")["end to end x"] == ""
    assert cells(table, "core-tokens")["end to end x"] == "1.26"
    assert "end to end x: the speed-up from the image to the last of 64 new tokens." in table.notes


# --- labels ---------------------------------------------------------------------------------------------------------


def test_decoder_and_batch_are_shown_where_they_differ():
    headings = [column.heading for column in decode_table(bench()).columns]
    assert headings[:2] == ["source", "method"]
    assert not {"decoder", "batch", "layers"} & set(headings)
    several = bench(("dense", "corematching"), decoders=("eager generate", "graph"), batches=(1, 2))
    table = decode_table(several)
    assert [column.heading for column in table.columns][:4] == ["source", "method", "decoder", "batch"]
    assert [row[:4] for row in table.rows][:4] == [
        ("measured", "dense", "eager generate", "1"),
        ("measured", "dense", "graph", "1"),
        ("measured", "dense", "eager generate", "2"),
        ("measured", "dense", "graph", "2"),
    ]


def test_graph_is_compared_with_both_dense_decoders():
    table = decode_table(bench(("dense", "corematching"), decoders=("eager generate", "graph")))
    rows = {(row["method"], row["decoder"]): row for row in raw(table) if row["source"] == "measured"}
    graph = rows["corematching", "graph"]
    assert (graph["decode_speedup"], graph["decode_speedup_over_hf"]) == (
        pytest.approx(1 / 0.64),
        pytest.approx(3 / 0.64),
    )
    assert rows["dense", "graph"]["decode_speedup_over_hf"] == pytest.approx(3)
    assert "decode_speedup_over_hf" not in rows["corematching", "eager generate"]
    assert any(note.startswith("x over HF") for note in table.notes)
    assert "x over\nHF" not in [column.heading for column in decode_table(bench()).columns]


def test_the_in_place_cache_is_compared_with_both_dense_caches():
    table = decode_table(bench(("dense", "corematching"), decoders=("eager generate", "in-place cache")))
    rows = {(row["method"], row["decoder"]): row for row in raw(table) if row["source"] == "measured"}
    sparse, dense = rows["corematching", "in-place cache"], rows["dense", "in-place cache"]
    names = "decode_speedup", "decode_speedup_same_cache"
    assert [sparse[name] for name in names] == [pytest.approx(3 / 0.64), pytest.approx(1 / 0.64)]
    assert [dense[name] for name in names] == [pytest.approx(3), 1]
    assert "decode_speedup_same_cache" not in rows["dense", "eager generate"]
    assert any("over dense by eager generate, Hugging Face's own" in note for note in table.notes)
    assert "same\ncache x" not in [column.heading for column in decode_table(bench()).columns]


def test_a_note_says_which_dense_where_it_was_not_decoded_alike():
    rows = [replace(row, decoder="streamed FFN") if row.method == "dense" else row for row in bench().rows]
    notes = decode_table(replace(bench(), rows=tuple(rows))).notes
    assert "gathered: the speed-up is over dense by streamed FFN, the fastest dense there is." in notes
    assert not any("fastest dense" in note for note in decode_table(bench()).notes)


# --- notes ----------------------------------------------------------------------------------------------------------


def test_notes_say_how_it_was_measured():
    notes = bench_table(bench()).notes
    assert "Medians of 10 runs, the methods taking turns; speed-up: dense's median over the method's." in notes
    assert "prefill TFLOPs: 2*MAC; counted by torch; prompt of 610 tokens." in notes
    assert "random weights, 4 of 32 decoder layers, bfloat16, a test machine, threads: 1." in notes
    assert any("(14.5 GB/s and 0.06 TFLOP/s, both measured)" in note for note in notes)
    assert any("corematching 64" in note and "(given)" in note for note in notes)


def test_notes_of_a_gpu_and_of_a_projection():
    record = replace(bench(device="auto"), environment={"gpu": {"name": "NVIDIA H200"}, "threads": 16, "cpu": "x"})
    assert "random weights, 4 of 32 decoder layers, bfloat16, NVIDIA H200." in bench_table(record).notes
    projected = bench(projected=True, layers=32, device="titanxp")
    assert "32 of 32 decoder layers, bfloat16, titanxp." in bench_table(projected).notes
    assert not any("Medians" in note for note in bench_table(projected).notes)


@pytest.mark.parametrize(
    ("counted", "note"),
    [((None, None), "by formula"), ((1.0, 2.0), "counted by torch"), ((None, 1.0), "counted or by formula")],
)
def test_note_on_how_operations_were_counted(counted, note):
    first, second = (row for row in bench(("dense", "core-tokens")).rows if row.phase == "prefill")
    rows = tuple(replace(row, flops_counted=one) for row, one in zip((first, second), counted, strict=True))
    assert any(f"2*MAC; {note}" in line for line in prefill_table(replace(bench(), rows=rows)).notes)


# --- phases and lengths ---------------------------------------------------------------------------------------------


def test_phases_have_every_row_in_their_order():
    record = bench()
    table = phase_table(record)
    assert len(table.rows) == len(record.rows)
    phases = [row[0] for row in table.rows]
    assert phases == sorted(phases, key=PHASES.index)
    (line,) = (row for row in raw(table) if (row["phase"], row["method"]) == ("decode", "corematching"))
    numbers = {name: line[name] for name in ("median_ms", "p10_ms", "p90_ms", "limit_ms", "runs", "new_tokens")}
    assert numbers == pytest.approx(
        {"median_ms": 6.4, "p10_ms": 6.144, "p90_ms": 6.656, "limit_ms": 5.76, "runs": 10, "new_tokens": 64}
    )
    assert line["speedup_share"] == pytest.approx(1 / 0.64 / 1.66)
    shares = {row["phase"]: row.get("dense_prefill_share") for row in raw(table) if row["method"] == "corematching"}
    assert [shares[phase] for phase in ("selection", "gathering")] == pytest.approx([0.02, 0.03])
    assert shares["decode"] is None


def test_phases_are_parted_by_rules():
    assert to_latex(phase_table(bench())).count(r"\midrule") == len(PHASES)


def test_lengths_are_ratios_of_times():
    table = length_table(bench())
    (line,) = (row for row in raw(table) if row["method"] == "corematching")
    expected = {f"new_tokens_{n}": (300 + 6.4 * (n - 1)) / (500 + 10 * (n - 1)) for n in LENGTHS}
    assert {name: line[name] for name in expected} == pytest.approx(expected)
    assert cells(table, "corematching", "corematching")["64"] == "0.622"
    assert "dense" not in [row["method"] for row in raw(table)]


def test_a_length_that_was_not_run_is_empty():
    rows = [row for row in bench().rows if (row.method, row.phase, row.new_tokens) != ("corematching", "end-to-end", 4)]
    table = length_table(replace(bench(), rows=tuple(rows)))
    assert cells(table, "corematching", "corematching") == {
        "method": "corematching",
        "1": "0.600",
        "2": "0.601",
        "4": "",
        "16": "0.609",
        "64": "0.622",
    }


# --- where they go --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [prefill_table, decode_table, phase_table, length_table])
@pytest.mark.parametrize("projected", [False, True])
def test_tables_fit_a_terminal_of_120_columns(make, projected):
    """With decoders and batch sizes; numbers are whole, and those of a row in one line, or one of each block."""
    methods = ("dense", "core-neurons", "corematching:beta=0.2")
    table = make(bench(methods, decoders=("eager generate", "graph"), batches=(1, 2), projected=projected, layers=32))
    lines = lines_at(120, table)
    assert max(map(len, lines)) <= 120
    text = "\n".join(lines)
    assert "…" not in text
    for block in blocks(table, 120):
        numeric = [at for at in block if table.columns[at].numeric]
        for row in table.rows:
            assert any(all(row[at] in line.split() or not row[at] for at in numeric) for line in lines), row


def test_tables_are_written_beside_the_record(tmp_path):
    record = bench()
    paths = write_bench_tables(record, tmp_path)
    assert [path.name for path in paths] == ["table.md", "table.csv", "table.tex", "phases.csv"]
    markdown, main, latex, phases = (path.read_text(encoding="utf-8") for path in paths)
    titles = [line for line in markdown.splitlines() if line.startswith("**")]
    assert titles == [f"**{make(record).title}**" for make in (prefill_table, decode_table, length_table, phase_table)]
    assert main == to_csv(bench_table(record))
    assert latex.count(r"\begin{table}") == 2
    assert phases == to_csv(phase_table(record))


def test_an_empty_record_is_written_too(tmp_path):
    for path in write_bench_tables(BenchRecord("m", ()), tmp_path):
        assert path.read_text(encoding="utf-8")
