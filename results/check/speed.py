"""Speed-ups over dense, each from one record alone, so that the machine's own speed falls out.

Of an evaluation the time that a method shortens: to the first new token if it prunes image tokens, of decoding if it
prunes neurons. Of a bench the time from the image to the last token, at the longest answer that was measured.
"""

from coremat.errors import RecordError
from coremat.names import DENSE
from coremat.results.check.rows import FALL_ALONE, FLOOR, MOST_FALL, PRESENCE, SPREAD, Compared, Measured
from coremat.results.record.bench import BenchRecord
from coremat.results.record.bench_rows import END_TO_END, BenchRow, Setup
from coremat.results.record.eval import Record, Row
from coremat.results.record.methods import shortens
from coremat.results.tables.bench_costs import longest

TIMES = {"first token": "first_token_ms", "decode": "decode_ms_per_token"}
BY_WHAT = {"first token": "tokens", "decode": "neurons"}  # of which fewer make a phase shorter
MEASURE = "end-to-end speed-up"


def _too_slow(now: Measured, least: float) -> str:
    return f"is {now.value:.2f}, below {least:g}" if now.value < least else ""


# --- evaluations -----------------------------------------------------------------------------------------


def floor_of_scores(record: Record, least: float) -> tuple[Compared, ...]:
    """Whether each method is `least` times as fast as the record's own dense row of the task, where it prunes."""
    rows: dict[tuple[str, str], Row] = {}
    for row in record.rows:
        rows.setdefault((row.method, row.task), row)  # of several metrics the first, which is of most questions
    found = tuple(
        _floor(row, rows.get((DENSE, row.task)), phase, least)
        for row in rows.values()
        if row.method != DENSE
        for phase, what in BY_WHAT.items()
        if shortens(record.config, row.method, what)
    )
    if not found:
        raise RecordError("the record has no method that prunes anything, and --min-speedup needs one")
    return found


def _floor(row: Row, dense: Row | None, phase: str, least: float) -> Compared:
    times = [getattr(one, TIMES[phase]) if one else None for one in (dense, row)]
    if None in times or not times[1]:
        lacking = DENSE if times[0] is None else row.method
        raise RecordError(f"the record has no {TIMES[phase]} of {lacking} on {row.task}, and --min-speedup needs it")
    now = Measured(times[0] / times[1])
    return Compared(
        method=row.method,
        where=row.task,
        measure=f"{phase} speed-up",
        now=now,
        baseline=None,
        rule=FLOOR,
        why=_too_slow(now, least),
    )


# --- benches ---------------------------------------------------------------------------------------------


def compare_benches(record: BenchRecord, baseline: BenchRecord, least: float | None) -> tuple[Compared, ...]:
    """Every setup of a method other than dense: over dense at least `least`, or if that is None as in the baseline."""
    setups = dict.fromkeys(setup for one in (baseline, record) for setup in one.setups() if setup.method != DENSE)
    found = (_compare(setup, record, baseline, least) for setup in setups)
    return tuple(row for row in found if row is not None)


def _compare(setup: Setup, record: BenchRecord, baseline: BenchRecord, least: float | None) -> Compared | None:
    row, other = (longest(one, setup, END_TO_END) for one in (record, baseline))
    if row and other and row.work != other.work:
        raise RecordError(f"{setup.method} did other work than in the baseline: {_work(row)}, there {_work(other)}")
    now, before = _speedup(record, row), _speedup(baseline, other)
    if now is None and before is None:
        return None
    rule, why = _judge(now, before, least)
    return Compared(
        method=setup.method,
        where=f"{setup.decoder}, batch {setup.batch_size}",
        measure=MEASURE,
        now=now,
        baseline=before,
        rule=rule,
        drop=before.value - now.value if now and before else None,
        why=why,
    )


def _work(row: BenchRow) -> str:
    return f"{row.prompt_tokens} prompt tokens and {row.new_tokens} new ones"


def _speedup(record: BenchRecord, row: BenchRow | None) -> Measured | None:
    value = record.speedup(row) if row else None
    return Measured(value, None, record.speedup_range(row), row.projected) if row and value else None


def _judge(now: Measured | None, before: Measured | None, least: float | None) -> tuple[str, str]:
    """The rule, and what regressed."""
    if now is None:
        return PRESENCE, f"is missing, and was {before.value:.2f}" if before else ""
    if least is not None:
        return FLOOR, _too_slow(now, least)
    if before is None:
        return PRESENCE, ""
    spans = (now.span, before.span)
    beyond = now.span[1] < before.span[0] if now.span and before.span else True
    why = f"fell by {1 - now.value / before.value:.0%}, from {before.value:.2f} to {now.value:.2f}"
    fell = now.value < (1 - MOST_FALL) * before.value and beyond
    return (SPREAD if None not in spans else FALL_ALONE), why if fell else ""
