"""What a prompt and an answer cost under a method, as a line of a journal says it."""

from coremat.runtime.stats import SequenceStats
from coremat.tasks.run.lines import Line

MIB = 1 << 20
COSTS = (
    "image_tokens",
    "image_tokens_kept",
    "neurons",
    "neurons_kept",
    "ffn_read_mib",
    "prefill_tflops",
    "kv_cache_mib",
)  # of which a row has the means


def costs(stats: SequenceStats) -> Line:
    """Memory in MiB, neurons as the mean of the layers."""
    return {
        "prompt_tokens": stats.prompt_tokens,
        "image_tokens": stats.image_tokens,
        "image_tokens_kept": stats.image_tokens_kept,
        "neurons": stats.neurons,
        "neurons_kept": sum(stats.neurons_kept) / len(stats.neurons_kept),
        "ffn_read_mib": stats.ffn_bytes_per_token / MIB,
        "prefill_tflops": stats.prefill_flops / 1e12,
        "kv_cache_mib": stats.kv_bytes / MIB,
    }
