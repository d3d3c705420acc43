"""A bench record in the columns and units of the paper's Table 3: memory and time of the whole model, one prompt.

Rows that are measured and rows that are projected stay apart, and a bench that ran something else than the paper's
whole model gives no row, but a note that says why.
"""

from collections.abc import Iterator
from typing import Any

from coremat.results.record.bench import BenchRecord
from coremat.results.record.bench_rows import DECODE, PREFILL, BenchRow, Setup
from coremat.results.tables.eval import PROJECTED_NOTE

MEASURED, PROJECTED = "measured", "projected"
PAPER_TOKENS = 64  # new tokens behind the paper's decode columns: 0.845 TFLOP are 64 times 13.2 GFLOP
PAPER_NAMES = {"predictor": "powerinfer"}  # trained, where the paper emulates its time
DECODE_COLUMNS = ("decode_gflops", "decode_latency_s")


def source_of(projected: bool) -> str:
    return PROJECTED if projected else MEASURED


def bare(method: str) -> str:
    """The name of a method without its options."""
    return method.partition(":")[0]


def paper_name(method: str) -> str:
    """The paper's name of a method as typed."""
    return PAPER_NAMES.get(bare(method), bare(method))


def longest(record: BenchRecord, setup: Setup, phase: str) -> BenchRow | None:
    """The row of a phase; of several lengths of answer the longest."""
    return next(reversed(record.rows_of(setup, phase)), None)


def of_layers(record: BenchRecord) -> str:
    """How much of the model was run: "4 of 32 decoder layers"; "" where that is not recorded."""
    run = "/".join(str(layers) for layers in sorted({row.layers for row in record.rows}))
    whole = record.config.get("model_layers")
    return f"{run} of {whole} decoder layers" if run and whole else ""


def weights_of(record: BenchRecord) -> str:
    """As in "random weights"; "" where nothing was run or that is not recorded."""
    weights = record.config.get("weights")
    return f"{weights} weights" if weights and any(not row.projected for row in record.rows) else ""


def not_comparable(record: BenchRecord) -> str | None:
    """Why a bench has no row in the paper's table; None if it has."""
    if not record.rows:
        return "nothing was finished"
    if record.config.get("weights") not in ("random", "pretrained"):
        return "its weights are not recorded"
    if not of_layers(record):
        return "the number of the model's layers is not recorded"
    if record.config["model_layers"] not in {row.layers for row in record.rows}:
        return of_layers(record)
    return None if _setups(record) else "no row of batch size 1"


def _setups(record: BenchRecord) -> list[Setup]:
    whole = record.config.get("model_layers")
    return [setup for setup in record.setups() if setup.batch_size == 1 and setup.layers == whole]


def cost_rows(record: BenchRecord) -> Iterator[dict[str, Any]]:
    """The cells of one row for each method and decoder.

    Beside the columns: `projected`; `paper_method`, the method's name in the paper; `unlike`, the columns that hold
    another amount of work than the paper's.
    """
    several = len({setup.decoder for setup in record.setups()}) > 1
    for setup in [] if not_comparable(record) else _setups(record):
        prefill, decode = (longest(record, setup, phase) for phase in (PREFILL, DECODE))
        yield {
            "source": source_of(setup.projected),
            "projected": setup.projected,
            "model": record.model,
            "device": record.device or None,
            "method": f"{setup.method}, {setup.decoder}" if several else setup.method,
            "paper_method": paper_name(setup.method),
            "unlike": DECODE_COLUMNS if decode is not None and decode.new_tokens != PAPER_TOKENS else (),
            **_sparsity(prefill or decode),
            **_memory(record, setup),
            **_prefill(prefill),
            **_decode(decode),
        }


def _sparsity(row: BenchRow | None) -> dict[str, Any]:
    if row is None:
        return {}
    return {
        "neuron_sparse": _fewer(row.neurons_kept, row.neurons),
        "token_sparse": _fewer(row.image_tokens_kept, row.image_tokens),
    }


def _fewer(kept: float | None, seen: float | None) -> str | None:
    return None if kept is None or seen is None else ("yes" if kept < seen else "no")


def _memory(record: BenchRecord, setup: Setup) -> dict[str, Any]:
    memory = record.memory_of(setup)
    if memory is None:
        return {}
    return {
        "kv_cache_mb": memory.kv_cache_mib_paper if memory.projected else memory.kv_cache_mib,
        "ffn_gb": memory.ffn_gb,
        "total_gb": memory.total_gb,
        "memory_ratio": record.memory_ratio(memory),
    }


def _prefill(row: BenchRow | None) -> dict[str, Any]:
    if row is None:
        return {}
    return {
        "prefill_tflops": row.tflop,
        "prefill_latency_s": row.median_ms / 1000,
    }


def _decode(row: BenchRow | None) -> dict[str, Any]:
    if row is None:
        return {}
    return {
        "decode_gflops": None if row.tflop is None else row.tflop * row.new_tokens,
        "decode_latency_s": row.median_ms * row.new_tokens / 1000,
    }


def cost_notes(record: BenchRecord) -> Iterator[str]:
    """What a reader must know of a bench before comparing it with the paper."""
    reason = not_comparable(record)
    if reason:
        yield f"{record.model}: this bench adds nothing to this table ({reason})."
        return
    rows = [row for setup in _setups(record) for row in record.rows_of(setup, DECODE)]
    tokens = ", ".join(str(count) for count in sorted({row.new_tokens for row in rows}))
    kept = record.config.get("image_tokens_kept")
    parts = [weights_of(record), kept and f"number of kept image tokens {kept}"]
    parts += [tokens and f"decode columns of {tokens} new tokens"]
    yield f"{record.model}: {', '.join(filter(None, parts))}."
    if any(setup.projected for setup in _setups(record)):
        yield PROJECTED_NOTE
