"""The table of an evaluation in its four forms."""

import csv
import io
import math
import pickle
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from coremat.errors import UnknownNameError
from coremat.results.record.eval import ROW_FIELDS, Record, Row
from coremat.results.tables.eval import (
    FORMS,
    Column,
    Table,
    count,
    eval_table,
    fixed,
    render,
    significant,
    to_csv,
    to_latex,
    to_markdown,
    write_tables,
)
from coremat.results.tables.terminal import Fitted

METHODS = ("dense", "corematching", "core-tokens", "core-neurons", "random-tokens", "random-neurons")
FULL = Row(
    method="corematching",
    task="shapes",
    metric="exact_match",
    score=93.14159,
    stderr=0.5678,
    samples=2000,
    image_tokens=144,
    image_tokens_kept=36.43,
    neurons=352,
    neurons_kept=140,
    prefill_tflops=0.000512345,
    kv_cache_mib=0.43211,
    first_token_ms=123.456,
    decode_ms_per_token=12.3456,
    selection_ms=1.23456,
    agreement_with_dense=97.8543,
)
EMPTY = Row(method="dense", task="shapes", metric="exact_match", samples=0)
CONFIG = {"flops_convention": "2*MAC", "prompt_tokens": 166.25}


def record(*rows: Row, **config: object) -> Record:
    return Record("tiny", rows, CONFIG | config, {"device": "a test machine"})


def test_scores_on_lmms_evals_own_scale_are_not_rounded_away() -> None:
    caption = replace(FULL, task="captions", metric="cider", score=1.1, stderr=0.012)
    rows = (caption, replace(caption, method="dense", score=0.96, stderr=None), FULL)
    shown = eval_table(record(*rows, own_scale={"captions": ["cider"]}))
    assert [cells[3] for cells in shown.rows] == ["1.100 ± 0.012", "0.960", "93.1 ± 0.6"]
    assert "captions: cider as lmms-eval gives it, which is not made per cent." in shown.notes


def both_tasks() -> Record:
    rows = [replace(FULL, method=m, task=t) for m in METHODS for t in ("easyvqa", "shapes")]
    return record(*rows)


def lines_at(width: int, table: Table) -> list[str]:
    file = io.StringIO()
    Console(width=width, file=file, color_system=None).print(Fitted(table))
    return file.getvalue().splitlines()


def test_cells_of_a_full_row():
    assert eval_table(record(FULL)).rows == (
        (
            "corematching",
            "shapes",
            "exact_match",
            "93.1 ± 0.6",
            "2000",
            "144→36.4",
            "140/352",
            "0.000512",
            "0.432",
            "123",
            "12.3",
            "1.23",
            "97.9",
        ),
    )


def test_what_was_not_measured_is_empty():
    assert eval_table(record(EMPTY)).rows == (("dense", "shapes", "exact_match", "", "0", *[""] * 8),)
    assert to_csv(eval_table(record(EMPTY))).splitlines()[1] == "dense,shapes,exact_match,,,0" + "," * 11


def test_what_ffns_read_is_shown_where_it_was_counted():
    table = eval_table(record(replace(FULL, ffn_read_mib=1.75), EMPTY))
    place = [column.heading for column in table.columns].index("FFN MiB\nread/tok")
    assert [row[place] for row in table.rows] == ["1.75", ""]
    assert "ffn_read_mib" in to_csv(table).splitlines()[0].split(",")
    assert not any(column.heading.startswith("FFN") for column in eval_table(record(FULL)).columns)


def test_times_that_mean_nothing_are_said_to():
    methods = {"oracle-neurons": {"name": "oracle-neurons", "accuracy_only": True}, "dense": {"name": "dense"}}
    notes = [note for note in eval_table(record(FULL, methods=methods)).notes if "accuracy only" in note]
    assert notes == [
        "oracle-neurons: accuracy only; decode steps compute more than is counted, so their times mean nothing."
    ]


def test_score_without_error_and_half_counts():
    row = replace(FULL, stderr=None, image_tokens_kept=None, neurons=None)
    cells = eval_table(record(row)).rows[0]
    assert cells[3:7] == ("93.1", "2000", "144→", "140/")


def test_methods_stand_side_by_side_within_a_task():
    table = eval_table(both_tasks())
    assert [row[1] for row in table.rows] == ["easyvqa"] * 6 + ["shapes"] * 6
    assert [row[0] for row in table.rows] == list(METHODS) * 2
    assert [row[:2] for row in table.raw] == [row[:2] for row in table.rows]


def test_notes_state_flops_device_and_prompt():
    notes = " ".join(eval_table(record(FULL)).notes)
    assert "prefill TFLOPs: 2*MAC; prompt of 166.2 tokens (mean)." in notes
    assert "measured on a test machine" in notes


def test_the_time_to_the_first_token_is_no_prefill():
    table = eval_table(record(FULL))
    headings = to_markdown(table).splitlines()[2]
    assert "| first token ms |" in headings
    assert "prefill ms" not in headings
    assert "first token: from the start of generate, vision tower included, over the batch's rows" in table.notes[0]


def test_prompt_length_by_task():
    notes = eval_table(record(FULL, prompt_tokens={"shapes": 170, "easyvqa": 160.5})).notes
    assert "prompt of 170 tokens in shapes, 160.5 tokens in easyvqa (mean)." in notes[-1]


def test_flops_without_their_convention_say_so():
    notes = eval_table(Record("tiny", (FULL,))).notes
    assert notes[-1] == "prefill TFLOPs: convention not recorded; prompt length not recorded."


def test_no_flops_no_note_on_them():
    assert not any("TFLOPs" in note for note in eval_table(record(EMPTY)).notes)


def test_notes_say_what_went_wrong_and_what_is_unlike_the_paper():
    broken = [{"task": "shapes", "doc_id": doc_id, "reason": "cut short"} for doc_id in (5, 9, 12, 40)]
    notes = {"vqav2": "here validation"}
    table = eval_table(record(FULL, skipped={"fastv": "no."}, broken=broken, in_smaller_batches=12, notes=notes))
    assert table.notes[3:] == (
        "fastv skipped: no.",
        "images or videos that could not be read, and count as wrong: 4 (shapes 5, shapes 9, shapes 12, ...).",
        "memory ran out: answers that came from smaller batches: 12.",
        "vqav2: here validation.",
    )
    three = eval_table(record(FULL, broken=broken[:3])).notes
    assert three[-1].endswith(": 3 (shapes 5, shapes 9, shapes 12).")


def test_a_run_without_incidents_has_no_notes_on_them():
    assert len(eval_table(record(FULL, skipped={}, broken=[], in_smaller_batches=0, notes={})).notes) == 3


def test_points_are_not_called_per_cent():
    table = eval_table(record(replace(FULL, task="mme", metric="mme_perception_score", score=1510.7)))
    assert table.columns[3].heading == "score"
    assert "per cent (MME: points;" in table.notes[0]


def test_csv_holds_the_raw_numbers():
    rows = list(csv.DictReader(io.StringIO(to_csv(eval_table(record(FULL))))))
    assert tuple(rows[0]) == ROW_FIELDS
    assert [rows[0][name] for name in ("score", "samples", "prefill_tflops")] == ["93.14159", "2000", "0.000512345"]


def test_markdown():
    table = Table("T", (Column("a|b", numeric=False), Column("n\nms")), (("x|y", "1"),), (), (), ("note",))
    assert to_markdown(table) == "**T**\n\n| a\\|b | n ms |\n| --- | ---: |\n| x\\|y | 1 |\n\n- note\n"


def test_latex_is_escaped():
    table = Table(
        "5 % & more", (Column("a_b", numeric=False), Column("n\n%")), (("x\\y{#}", "1 ± 2"),), (), (), ("a→b",)
    )
    assert to_latex(table).splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{5 \% \& more}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"a\_b & \shortstack{n \\ \%} \\",
        r"\midrule",
        r"x\textbackslash{}y\{\#\} & 1 $\pm$ 2 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip{\footnotesize a$\to$b\par}",
        r"\end{table}",
    ]


def test_latex_rules_between_tasks_only():
    assert to_latex(eval_table(both_tasks())).count(r"\midrule") == 2


@given(text=st.text(st.sampled_from("&%$#_{}~^\\<>|ab"), max_size=20))
def test_latex_cells_have_no_bare_special_character(text):
    table = Table("t", (Column("h", numeric=False),), ((text,),), (), ())
    cell = to_latex(table).splitlines()[7].removesuffix(r" \\")
    bare = re.sub(r"\\[&%$#_{}]|\\text[a-z]+\{\}", "", cell)
    assert not re.search(r"[&%$#_{}~^\\<>|]", bare)


def test_table_fits_a_terminal_of_120_columns():
    rows = [replace(FULL, method=m, neurons=11008, neurons_kept=4403, image_tokens=576) for m in METHODS]
    lines = lines_at(120, eval_table(record(*rows)))
    assert max(map(len, lines)) <= 120
    for method in METHODS:
        (line,) = (line for line in lines if line.startswith(f"{method} "))
        assert "93.1 ± 0.6    2000 576→36.4 4403/11008 0.000512 0.432      123   12.3   1.23  97.9" in line


def test_narrow_terminal_folds_names_and_keeps_numbers():
    row = replace(FULL, task="mmbench_en_dev_static", metric="mme_perception_score")
    text = "\n".join(lines_at(100, eval_table(record(row))))
    assert "…" not in text
    assert all(number in text for number in ("0.000512", "144→36.4", "140/352", "93.1 ± 0.6"))


def test_rich_takes_names_literally():
    table = Table("[red]T", (Column("h", numeric=False),), (("[bold]x",),), (), (), ("[i]n",))
    text = "\n".join(lines_at(80, table))
    assert all(name in text for name in ("[red]T", "[bold]x", "[i]n"))


def test_tables_are_written_beside_the_record(tmp_path):
    paths = write_tables(both_tasks(), tmp_path)
    assert [path.name for path in paths] == ["table.md", "table.csv", "table.tex"]
    table = eval_table(both_tasks())
    assert [path.read_text(encoding="utf-8") for path in paths] == [form(table) for form in FORMS.values()]


def test_empty_record_is_an_empty_table():
    table = eval_table(record())
    assert table.rows == ()
    for form in FORMS:
        assert render(table, form)
    lines_at(120, table)


def test_unknown_form_is_refused():
    with pytest.raises(UnknownNameError) as caught:
        render(eval_table(record()), "Markdwn")
    assert (
        str(caught.value) == "unknown table format 'Markdwn': did you mean 'markdown'? known are markdown, csv, latex"
    )


def test_unknown_name_survives_a_worker_process():
    error = pickle.loads(pickle.dumps(UnknownNameError("task", "x", map(str, range(40)))))
    assert str(error).endswith("28, 29, ... (40 in all)")
    assert error.kind == "task"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (0.0, "0"),
        (0.000512345, "0.000512"),
        (0.9996, "1.00"),
        (2.134, "2.13"),
        (10.06, "10.1"),
        (99.96, "100"),
        (123.456, "123"),
        (12345.6, "12346"),
        (-0.0451, "-0.0451"),
    ],
)
def test_significant(value, text):
    assert significant(value) == text


@given(value=st.floats(1e-9, 1e9))
def test_significant_is_near(value):
    assert math.isclose(float(significant(value)), value, rel_tol=0.005)
    assert "e" not in significant(value)


def test_fixed_and_count():
    assert (fixed(None), fixed(2.25), fixed(2.255, 2)) == ("", "2.2", "2.25")
    assert (count(None), count(144.0), count(36.43), count(100)) == ("", "144", "36.4", "100")
