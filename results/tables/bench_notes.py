"""The notes under the tables of a bench: what was run, on what, and how its numbers are to be read."""

from collections.abc import Iterable, Iterator, Sequence

from coremat.results.paper.printed import SOURCE
from coremat.results.record.bench import EAGER, IN_PLACE, NOISE, USUAL, BenchRecord
from coremat.results.record.bench_rows import DECODE, END_TO_END, PREFILL, SELECTION, BenchRow
from coremat.results.tables.bench_costs import PAPER_TOKENS, of_layers, weights_of
from coremat.results.tables.eval import accuracy_only_notes, count

PAPER_NOTE = (
    f"paper: {SOURCE}, Table 3, the whole model on a Titan Xp; speed-ups are ratios of its times, decode its "
    f"columns over {PAPER_TOKENS} tokens."
)


def memory_notes(record: BenchRecord) -> Iterator[str]:
    """On the memory columns and the operations of the prefill."""
    yield (
        "KV: measured after the prefill; as paper: text and kept image tokens times the bytes of one in all layers. "
        "total: weights that decoding needs, and the cache; extra: held on top. MiB: 2^20 bytes, GB: 10^9."
    )
    if any(row.phase == SELECTION for row in record.rows):
        yield "choosing: the time that choosing tokens and neurons takes, as a share of dense's decoder prefill."
    if any(memory.ffn_read_gb is not None for memory in record.memory):
        yield (
            "FFN: weights among which the tokens of an answer choose; read: by one decode step, with what the method "
            "adds in order to choose."
        )
    rows = [row for row in record.rows if row.phase == PREFILL and row.tflop is not None]
    if rows:
        convention = record.config.get("flops_convention", "convention not recorded")
        tokens = _each(row.prompt_tokens for row in rows)
        yield f"prefill TFLOPs: {convention}; {_how_counted(rows)}; prompt of {tokens} tokens."


def _how_counted(rows: Sequence[BenchRow]) -> str:
    counted = {row.flops_counted is not None for row in rows}
    return "by formula" if counted == {False} else "counted by torch" if counted == {True} else "counted or by formula"


def time_notes(record: BenchRecord) -> Iterator[str]:
    """On times, limits, and what a speed-up is over."""
    runs = sorted({len(row.samples_ms) for row in record.rows if row.samples_ms})
    if runs:
        yield f"Medians of {_span(runs)} runs, the methods taking turns; speed-up: dense's median over the method's."
    given = record.config.get("limits")
    yield "decode: one step, a token for each prompt of the batch."
    where = f" ({given})" if given else ""
    yield f"limit: the larger of operations over rate and bytes over bandwidth, all weights on the device{where}."
    yield from accuracy_only_notes(record.config)
    yield from _other_decoders(record)
    lengths = [row.new_tokens for row in record.rows if row.phase == END_TO_END]
    if lengths:
        yield f"end to end x: the speed-up from the {record.beginning} to the last of {max(lengths)} new tokens."
    slower = sorted({row.method for row in record.rows if row.phase == END_TO_END and record.slower_lengths(row)})
    if slower:
        yield f"slower at: answers of so many tokens take over {NOISE} of dense's time ({', '.join(slower)})."


def _other_decoders(record: BenchRecord) -> Iterator[str]:
    """Which dense a row is compared with where dense was not decoded alike."""
    steps = [row for row in record.rows if row.phase == DECODE]
    pairs = ((row.decoder, dense.decoder) for row in steps if (dense := record.baseline(row)) is not None)
    for own, other in dict.fromkeys(pairs):
        if (own, other) == (IN_PLACE, EAGER):
            yield f"{own}: coremat's, which copies nothing; the speed-up is over dense by {other}, Hugging Face's own."
        elif own != other:
            yield f"{own}: the speed-up is over dense by {other}, the fastest dense there is."
    if any(record.speedup_on_same_cache(row) is not None for row in steps):
        yield f"same cache x: the speed-up over dense on the {IN_PLACE}."
    if any(record.speedup_over_usual(row) is not None for row in steps):
        yield f"x over HF: the speed-up over dense by Hugging Face's own means ({' or '.join(USUAL)})."


def setting_notes(record: BenchRecord) -> Iterator[str]:
    """On the work that was done, and the machine."""
    if record.rows:
        kept = f"{_kept(record)}; " if record.beginning == "image" else ""
        yield f"{kept}answers of {_each(row.new_tokens for row in record.rows)} tokens."
    config, environment = record.config, record.environment
    machine = environment.get("cpu", record.device) if record.device == "cpu" else record.device
    threads = environment.get("threads") if record.device == "cpu" else None
    facts = (weights_of(record), of_layers(record), config.get("dtype"), machine, threads and f"threads: {threads}")
    known = ", ".join(str(fact) for fact in facts if fact)
    if known:
        yield f"{known}."
    for method, reason in config.get("skipped", {}).items():
        yield f"{method} was skipped: {reason}"


def _kept(record: BenchRecord) -> str:
    """How many image tokens each method kept."""
    kept = {row.method: row.image_tokens_kept for row in record.rows if row.image_tokens_kept is not None}
    parts = ", ".join(f"{method} {count(number)}" for method, number in kept.items())
    how = record.config.get("image_tokens_kept")
    seen = _each(row.image_tokens for row in record.rows if row.image_tokens is not None)
    return f"image tokens kept of {seen or 'an unknown number'}: {parts or 'not recorded'}{f' ({how})' if how else ''}"


def _each(numbers: Iterable[float]) -> str:
    return ", ".join(count(number) for number in sorted(set(numbers)))


def _span(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
