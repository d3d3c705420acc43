"""A made-up bench whose numbers are easy to follow: dense takes 400 ms for the prefill and 10 ms for a decode step."""

from collections.abc import Iterator, Sequence
from typing import Any

from coremat.results.record.bench import BenchRecord
from coremat.results.record.bench_rows import PHASES, BenchMemory, BenchRow

# time over dense's, of prefill and decode; their limits; image tokens and neurons kept
METHODS = {
    "dense": (1.0, 1.0, 1.0, 1.0, 576, 11008),
    "core-tokens": (0.5, 0.95, 2.2, 1.06, 64, 11008),
    "core-neurons": (1.0, 0.65, 1.0, 1.62, 576, 4403),
    "corematching": (0.5, 0.64, 2.2, 1.66, 64, 4403),
    "corematching:beta=0.2": (0.5, 0.5, 2.2, 2.16, 64, 2201),
}
LENGTHS = (1, 2, 4, 16, 64)
CONFIG = {
    "command": "coremat bench --weights random",
    "weights": "random",
    "image_tokens_kept": "given",
    "model_layers": 32,
    "dtype": "bfloat16",
    "device": "cpu",
    "limits": "14.5 GB/s and 0.06 TFLOP/s, both measured",
    "flops_convention": "2*MAC",
}
ENVIRONMENT = {"cpu": "a test machine", "threads": 1, "gpu": None, "device": "cpu"}


def bench(
    methods: Sequence[str] = tuple(METHODS),
    *,
    decoders: Sequence[str] = ("gathered",),
    batches: Sequence[int] = (1,),
    projected: bool = False,
    layers: int = 4,
    model: str = "llava-1.5-7b",
    **config: Any,
) -> BenchRecord:
    """Rows method by method, as a bench writes them."""
    setups = [(method, decoder, batch) for batch in batches for decoder in decoders for method in methods]
    rows = [row for setup in setups for row in rows_of(*setup, projected=projected, layers=layers)]
    memory = [memory_of(method, batch, projected) for batch in batches for method in methods]
    return BenchRecord(model, tuple(rows), tuple(memory), CONFIG | config, ENVIRONMENT)


def rows_of(method: str, decoder: str, batch: int, *, projected: bool, layers: int) -> Iterator[BenchRow]:
    prefill, decode, prefill_limit, decode_limit, tokens, neurons = METHODS[method]
    shift = list(METHODS).index(method)  # no two methods are slow in the same runs
    slow = 1.0 if decoder != "eager generate" else 3.0
    step = 10 * decode * slow * (1 + (batch - 1) / 20)
    times = {"vision": 100 * batch, "prefill": 400 * prefill * batch, "decode": step}
    if method != "dense":
        times |= {"selection": 8.0 * batch, "gathering": 12.0 * batch}
    limits = {"prefill": prefill_limit, "decode": decode_limit}
    phases = [(phase, times[phase], 64, limits.get(phase)) for phase in PHASES if phase in times]
    for length in LENGTHS:
        whole = times["vision"] + times["prefill"] + (length - 1) * step
        best = 100 * batch + 400 * batch / prefill_limit + (length - 1) * 10 * slow / decode_limit
        dense = 500 * batch + (length - 1) * 10 * slow * (1 + (batch - 1) / 20)
        phases.append(("end-to-end", whole, length, dense / best))
    for phase, ms, length, limit in phases:
        yield BenchRow(
            method=method,
            decoder=decoder,
            phase=phase,
            batch_size=batch,
            layers=layers,
            prompt_tokens=610,
            image_tokens=576,
            image_tokens_kept=tokens,
            neurons=11008,
            neurons_kept=neurons,
            new_tokens=length,
            samples_ms=() if projected else [ms * (1 + 0.02 * ((nth + shift) % 5 - 2)) for nth in range(10)],
            projected_ms=ms if projected else None,
            flops=ms * 1e9,
            flops_counted=ms * 1.01e9 if phase == "prefill" else None,
            bytes=ms * 12e6,
            limit_ms=0.9 * ms,
            limit_speedup=limit,
        )


def memory_of(method: str, batch: int, projected: bool) -> BenchMemory:
    *_, tokens, neurons = METHODS[method]
    ffn, cache = 8.66 * neurons / 11008, (tokens + 34) * batch / 2
    return BenchMemory(
        method=method,
        batch_size=batch,
        kv_cache_mib=None if projected else cache,
        kv_cache_mib_paper=cache,
        ffn_gb=ffn,
        total_gb=7 + ffn,
        workspace_mib=0.0 if method == "dense" else 123.4,
    )
