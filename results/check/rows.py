"""What the comparison of two records says, as values: a verdict for each row, and the limits behind it."""

from dataclasses import dataclass

from coremat.errors import ConfigError

OK, REGRESSED, NEW = "ok", "regressed", "new"  # verdicts

# How a row was judged; `RULES` in compare_forms says it at length.
PRESENCE = "presence"
PAIRED, SAME_QUESTIONS, TWO_ERRORS, DROP_ALONE = "paired", "same questions", "two errors", "drop alone"
SPREAD, FALL_ALONE, FLOOR = "spread", "fall alone", "floor"
KL_PAIRED, KL_TWO_ERRORS, KL_ALONE = "kl, paired", "kl, two errors", "kl alone"

MOST_FALL = 0.1  # of a speed-up: two runs of one machine differ by less
MOST_RISE, LEAST_RISE = (
    0.1,
    1e-3,
)  # of a KL, as a share of it; nats per token that rounding on another machine may bring


@dataclass(frozen=True)
class Limits:
    """max_drop: points that a score may lose, and on lmms-eval's own scale per cent of the baseline's score.

    min_speedup: over dense; None: none is asked for.
    """

    max_drop: float = 1.0
    min_speedup: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop < float("inf"):
            raise ConfigError(f"--max-drop is {self.max_drop:g}; accepted: points from 0.")
        if self.min_speedup is not None and not 0 < self.min_speedup < float("inf"):
            raise ConfigError(f"--min-speedup is {self.min_speedup:g}; accepted: a factor above 0, such as 1.5.")


@dataclass(frozen=True)
class Measured:
    """A number with its standard error, or with the range of single runs, where there is one."""

    value: float
    stderr: float | None = None
    span: tuple[float, float] | None = None
    projected: bool = False


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One row: the `measure` of `method` in the record (now) and in the baseline; `where`: the task, or what was run.

    drop: baseline - now; interval: of the drop, at 95 %. why: what regressed, to be read after the row's name; "" if
    nothing did. own_scale: a score as lmms-eval gave it, whose largest value is not known. in_nats: a KL, which is
    better when lower, so that a loss is a drop below 0.
    """

    method: str
    where: str
    measure: str
    now: Measured | None
    baseline: Measured | None
    rule: str
    drop: float | None = None
    interval: tuple[float, float] | None = None
    why: str = ""
    own_scale: bool = False
    in_nats: bool = False

    @property
    def decimals(self) -> int:
        """Of its numbers, as they are shown: those on lmms-eval's own scale may end at 1, and a KL is small."""
        return 4 if self.own_scale or self.in_nats else 2

    @property
    def verdict(self) -> str:
        if self.why:
            return REGRESSED
        return NEW if self.rule == PRESENCE else OK

    @property
    def name(self) -> str:
        return f"{self.measure} of {self.method}, {self.where}"


@dataclass(frozen=True)
class Comparison:
    """All rows of two records of one model; notes: what makes them hard to compare."""

    model: str
    rows: tuple[Compared, ...]
    limits: Limits
    notes: tuple[str, ...] = ()

    @property
    def judged(self) -> tuple[Compared, ...]:
        return tuple(row for row in self.rows if row.verdict != NEW)

    @property
    def regressions(self) -> tuple[Compared, ...]:
        return tuple(row for row in self.rows if row.verdict == REGRESSED)

    @property
    def summary(self) -> str:
        """The whole in one line."""
        rows = "1 row" if len(self.judged) == 1 else f"{len(self.judged)} rows"
        if not self.regressions:
            return f"no regression in {rows}"
        return f"{len(self.regressions)} of {rows} regressed: {'; '.join(row.name for row in self.regressions)}"
