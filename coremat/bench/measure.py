"""A bench on a device that is here: the variants answer the same prompt in turns, A B A B, and every part is timed.

Within a round every variant answers once, so that what disturbs the machine disturbs all. What is finished is kept even
if a bench is stopped, by hand or because memory ran out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean

import torch

from coremat.bench.counted_flops import counted_prefill_flops
from coremat.bench.options import BenchOptions, methods_to_time
from coremat.bench.random_weights import random_model, random_prompt
from coremat.bench.rows import Measurement, measured_rows, memory_row
from coremat.bench.timing import AnswerTimes, Inputs
from coremat.bench.variants import MemoryLimit, Variant, decoders
from coremat.cost.flops import CONVENTION
from coremat.cost.model_size import ModelSize
from coremat.cost.schedule import Schedule, has_knee
from coremat.cost.workload import Workload
from coremat.environment import environment
from coremat.errors import UnsupportedError, first_sentence
from coremat.hardware.roofline import Roofline, measure_roofline
from coremat.memory import is_out_of_memory
from coremat.methods.base import Method, Stage
from coremat.models.adapter import Adapter
from coremat.models.architecture import with_layers
from coremat.models.families import adapter_for
from coremat.models.load import DTYPES, config_of, load, own_prune_layer
from coremat.offload.plan import MemoryPlan
from coremat.progress import Progress, Step
from coremat.results.record.bench import BenchRecord
from coremat.results.record.bench_rows import BenchMemory, BenchRow
from coremat.runtime.recorded import recorded
from coremat.runtime.stats import SequenceStats

Keep = Callable[[BenchRecord], object]
ROOM = 0.9  # of a device's free memory; the rest is for the runtime
SHORT = 2  # new tokens of the answer that is looked at for its memory


@dataclass(frozen=True)
class Outcome:
    """stopped: what ended a bench before its end (UnsupportedError: out of memory; KeyboardInterrupt), or None."""

    record: BenchRecord
    stopped: BaseException | None = None


def measure(options: BenchOptions, device: str, progress: Progress, keep: Keep) -> Outcome:
    """Build the model, run every batch size, and hand the growing record to `keep`."""
    if options.memory_limit is not None and not device.startswith("cuda"):
        raise UnsupportedError(
            f"memory_limit is {options.memory_limit} bytes on {device}; accepted: with CUDA, or a device profile."
        )
    run = _made(options, device, progress)
    try:
        for batch_size in options.batch_sizes:
            run.measure_batch(batch_size)
            keep(run.record())
    except KeyboardInterrupt as stopped:
        return Outcome(run.record(), stopped)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return Outcome(run.record(), UnsupportedError(f"memory ran out at {run.at}; what was finished is kept."))
    finally:
        if run.device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, run.device)
    return Outcome(run.record())


def _made(options: BenchOptions, device: str, progress: Progress) -> "_Run":
    """UnsupportedError where memory runs out over the model itself."""
    try:
        return _Run(options, torch.device(device), progress)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UnsupportedError(f"memory ran out while making the model: {first_sentence(error)}") from error


class _Run:
    """One model on one device. `at`: what is being done; `skipped`: methods that this model cannot run, and why."""

    def __init__(self, options: BenchOptions, device: torch.device, progress: Progress) -> None:
        self.options, self.device, self._progress = options, device, progress
        self.dtype = _dtype(options.dtype, device)
        self.rows: list[BenchRow] = []
        self.memory: list[BenchMemory] = []
        self._report("making the model", 0)
        self.config = config_of(options.model)
        self._limit = self._memory_limit()
        self.adapter = self._adapter()
        self.size = ModelSize.of(self.adapter.model.config)
        self.variants = self._variants()

    def _adapter(self) -> Adapter:
        options, here = self.options, self.device
        if self._limit is not None:
            here = torch.device("cpu")  # every variant takes to the device what it may have there
        if options.weights == "pretrained":
            return adapter_for(load(options.model, str(here), self._dtype_name).model)
        return adapter_for(random_model(self.config, options.layers, self.dtype, here, options.seed))

    def _variants(self) -> list[Variant]:
        variants = []
        self.methods = self.options.parsed(self.size, own_prune_layer(self.config))
        given, self.skipped = methods_to_time(self.adapter.model, self.methods)
        for spec, method in given.items():
            limit, resident = self._offload(method)
            for decoder in decoders(self.device, self.adapter, method, limit):
                variants.append(Variant(spec, method, decoder, self.device, limit, resident))
        return variants

    def _memory_limit(self) -> int | None:
        """Bytes of a device into which the dense model does not fit, None where it does."""
        if self.device.type != "cuda":
            return None
        free, total = torch.cuda.mem_get_info(self.device)
        limit = self.options.memory_limit or int(ROOM * free)
        whole = ModelSize.of(with_layers(self.config, self.options.layers)).parameters * self.dtype.itemsize
        if whole <= limit:
            return None
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), self.device)
        return limit

    def _offload(self, method: Method) -> tuple[MemoryLimit | None, int]:
        """What a method may take of a small device, and the layers whose FFNs stay on it."""
        if self._limit is None:
            return None, 0
        options = self.options
        plan = MemoryPlan.of(
            self.adapter.model, method, self._schedule(method), max(options.batch_sizes), options.new_tokens, self.dtype
        )
        plan.check(self._limit)
        weights = self._limit - plan.dense_kv_cache - plan.activations  # accelerate counts nothing else
        return MemoryLimit(self._limit, weights), plan.resident_layers(self._limit)

    def _schedule(self, method: Method, stats: Sequence[SequenceStats] = ()) -> Schedule:
        """stats: of a prompt that was read; without, a knee is taken to keep all."""
        size, text = self.size, self.options.text_tokens
        kept = _kept(stats, method.pruning_stages(size.layers), text)
        return Schedule.of(method, size.layers, size.shape, size.image_tokens, text, kept)

    # --- running ------------------------------------------------------------------------------------------------

    def measure_batch(self, batch_size: int) -> None:
        """The rows of one batch size; of what was stopped in the middle, those of the variants that answered."""
        inputs = self._prompt(batch_size)
        times: dict[Variant, list[AnswerTimes]] = {variant: [] for variant in self.variants}
        measurements: dict[Variant, Measurement] = {}
        try:
            for variant in self.variants:
                measurements[variant] = self._look_at(variant, inputs, measurements)
            for number in range(self.options.repeats):
                for variant in self.variants:
                    self._report(f"batch {batch_size}, round {number + 1}: {variant.label}")
                    times[variant].append(variant.answer(self.adapter, inputs, self.options.new_tokens))
        finally:
            for variant, answers in times.items():
                if answers:
                    self.rows += measured_rows(measurements[variant], answers)

    def _prompt(self, batch_size: int) -> Inputs:
        options, config = self.options, self.adapter.model.config
        return random_prompt(config, options.text_tokens, batch_size, options.seed, self.dtype, self.device)

    def _look_at(self, variant: Variant, inputs: Inputs, others: dict[Variant, Measurement]) -> Measurement:
        """One short answer for all that is no time: kept tokens, memory, and torch's own count of operations."""
        batch_size = len(inputs["input_ids"])
        self._report(f"batch {batch_size}, memory: {variant.label}")
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        with variant.open(self.adapter, batch_size, self.options.new_tokens) as (session, timed):
            seen = timed(inputs, SHORT)
            session.materialise()
            schedule = self._schedule(variant.method, session.stats)
            share = session.ffn_share if batch_size > 1 else None
            workspace = session.workspace_bytes
            counted = self._count(inputs) if batch_size == 1 and variant.limit is None else None
        own = Workload(self.size, schedule, batch_size, self._dtype_name, share)
        dense = others[self.variants[0]].workload if others else own
        facts = own, dense, self.roofline, self.options.new_tokens, counted
        measurement = Measurement(variant.spec, variant.decoder, *facts)
        self.memory.append(memory_row(measurement, seen.kv_bytes, workspace, self._peak()))
        return measurement

    def _count(self, inputs: Inputs) -> int:
        return counted_prefill_flops(self.adapter, inputs)

    def _peak(self) -> int | None:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None

    @cached_property
    def roofline(self) -> Roofline:
        return measure_roofline(self.device, self.dtype)

    # --- reporting ----------------------------------------------------------------------------------------------

    def _report(self, at: str, advance: int = 1) -> None:
        self.at = at
        rounds = len(getattr(self, "variants", ())) * (self.options.repeats + 1)
        self._progress(Step(rounds * len(self.options.batch_sizes), at, advance))

    @property
    def _dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def record(self) -> BenchRecord:
        roofline, text = self.roofline, self.config.get_text_config()
        given = (method for spec, method in self.methods.items() if spec not in self.skipped)
        by_knee = any(has_knee(method, self.size.layers) for method in given)
        about = {
            "methods": {spec: recorded(method) for spec, method in self.methods.items()},
            "model_layers": text.num_hidden_layers,
            "dtype": self._dtype_name,
            "limits": f"measured here: {roofline.bandwidth / 1e9:.1f} GB/s, {roofline.rate / 1e12:.3g} TFLOP/s",
            "bandwidth": roofline.bandwidth,
            "rate": roofline.rate,
            "image_tokens_kept": "found" if by_knee else "given",
            "skipped": self.skipped,
            "flops_convention": CONVENTION,
        }
        attention = str(self.adapter.decoder.config._attn_implementation)
        here = environment(str(self.device), self._dtype_name) | {"attention": attention}
        return BenchRecord(
            self.options.model, tuple(self.rows), tuple(self.memory), self.options.as_dict() | about, here
        )


def _kept(stats: Sequence[SequenceStats], stages: Sequence[Stage], text_tokens: int) -> list[int] | None:
    """Image tokens after each stage, the mean of the batch; None where no prompt was read."""
    if not stats:
        return None
    return [round(mean(row.tokens_per_layer[stage.after] for row in stats)) - text_tokens for stage in stages]


def _dtype(name: str, device: torch.device) -> torch.dtype:
    """UnsupportedError for one that the device lacks."""
    lacks = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bfloat16" and lacks:
        raise UnsupportedError(
            f"dtype is 'bfloat16', which {torch.cuda.get_device_name(device)} lacks; accepted: float16."
        )
    return DTYPES[("float16" if lacks else "bfloat16") if name == "auto" else name]
