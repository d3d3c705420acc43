"""`coremat bench`: how fast methods are, each part beside its limit; measured, or projected onto a device profile."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coremat.cli import console
from coremat.cli.list import show_list
from coremat.cli.options import Seed, names
from coremat.cli.report import Report, show_table
from coremat.errors import ConfigError

if TYPE_CHECKING:
    from coremat.bench.measure import Outcome
    from coremat.results.record.bench import BenchRecord

METHODS = "dense,corematching,corematching:beta=0.2,core-tokens,core-neurons"
MODEL = "llava-1.5-7b"


def bench(
    model: Annotated[
        str, typer.Option("--model", "-m", help="A name (coremat list models), a folder, a hub id.")
    ] = MODEL,
    methods: Annotated[str, typer.Option(help="Comma-separated methods; dense is always among them.")] = METHODS,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda; a device profile by name or JSON file; list shows the profiles.")
    ] = "auto",
    weights: Annotated[str, typer.Option(help="random (the real architecture, no download) or pretrained.")] = "random",
    layers: Annotated[
        int | None, typer.Option(help="Decoder layers to run; all by default. Nothing is extrapolated.")
    ] = None,
    image_tokens_kept: Annotated[
        str, typer.Option(help="A count, knee, or auto: the paper's average, 64 of 576.")
    ] = "auto",
    text_tokens: Annotated[int, typer.Option(help="Tokens of the prompt beside its image.")] = 34,
    new_tokens: Annotated[int, typer.Option(help="Length of every answer.")] = 64,
    batch_size: Annotated[str, typer.Option(help="One or more, comma-separated.")] = "1",
    dtype: Annotated[
        str, typer.Option(help="auto (bfloat16 where there is one), float32, bfloat16, float16.")
    ] = "auto",
    memory_limit: Annotated[
        str | None, typer.Option(help="Of the device, such as 12GB: FFN weights then stay on the host.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Rounds in which every method answers once.")] = 10,
    seed: Seed = 0,
    output: Annotated[Path | None, typer.Option(help="Folder of record, tables and plots.")] = None,
    report: Report = None,
) -> None:
    """Measure prefill, decoding, end-to-end time and memory, beside their limits and the paper's rows."""
    if device == "list":
        show_devices()
        return
    asked, sizes, kept = names("methods", methods), _sizes(batch_size), _kept(image_tokens_kept)
    from coremat.bench.options import BenchOptions

    options = BenchOptions(
        model=model,
        methods=tuple(asked),
        device=device,
        weights=weights,
        layers=layers,
        image_tokens_kept=kept,
        text_tokens=text_tokens,
        new_tokens=new_tokens,
        batch_sizes=sizes,
        dtype=dtype,
        memory_limit=None if memory_limit is None else _bytes(memory_limit),
        repeats=repeats,
        seed=seed,
    )
    folder = output or Path("coremat-runs") / f"bench-{datetime.now():%Y%m%d-%H%M%S}"
    from coremat.bench.run import bench as run

    console.log(f"{model}, {weights} weights: {', '.join(options.methods)}; record in {folder}")
    with console.progress("making the model") as advance:
        outcome = run(options, advance, lambda record: _write(record, folder))
    _write(outcome.record, folder)
    _finish(outcome, folder, report)


def _write(record: "BenchRecord", folder: Path) -> None:
    from coremat.results.plots.bench import write_bench_plots
    from coremat.results.tables.bench import write_bench_tables

    record.write(folder)
    write_bench_tables(record, folder)
    write_bench_plots(record, folder)


def _finish(outcome: "Outcome", folder: Path, report: str | None) -> None:
    from coremat.results.tables.bench import decode_table, length_table, prefill_table

    if outcome.record.rows:
        for table in (prefill_table, decode_table, length_table):
            show_table(table(outcome.record), report)
    console.log(f"record: {folder / 'record.json'} (also table.md, .csv, .tex, phases.csv and plots)")
    if isinstance(outcome.stopped, KeyboardInterrupt):
        console.log("stopped; what was finished is kept.")
        raise typer.Exit(130)
    if outcome.stopped is not None:
        raise outcome.stopped


def show_devices() -> None:
    """`--device list`."""
    from coremat.hardware.profiles import device_rows

    rows = device_rows()
    names = [name for name in rows[0] if name != "note"]
    headings = tuple(name.replace("gb_s", "GB/s").replace("_", "\n") for name in names)
    cells = (tuple("" if row[name] is None else str(row[name]) for name in names) for row in rows)
    show_list("Device profiles", headings, cells, numeric=headings[2:])
    for row in rows:
        console.log(f"{row['name']}: {row['note']}")


def _bytes(text: str) -> int:
    from coremat.offload.plan import parse_bytes

    return parse_bytes(text)


def _sizes(text: str) -> tuple[int, ...]:
    sizes = [part.strip() for part in text.split(",")]
    if not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise ConfigError(f"--batch-size is {text!r}; accepted: whole numbers of at least 1, comma-separated.")
    return tuple(dict.fromkeys(map(int, sizes)))


def _kept(text: str) -> int | str | None:
    if text in ("auto", "knee"):
        return None if text == "auto" else text
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"--image-tokens-kept is {text!r}; accepted: a count of at least 1, knee, auto.")
    return int(text)
