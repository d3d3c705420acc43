"""A bench on a device that is here: the sides answer the same prompt in turns, A B A B, and every part is timed.

Within a round every side answers once, so that what disturbs the machine disturbs all. What is finished is kept even if
a bench is stopped, by hand or because memory ran out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from coremat.config import SparsityConfig
from coremat.environment import environment
from coremat.errors import UnsupportedError
from coremat.flops import CONVENTION
from coremat.loading import DTYPES, load, own_prune_layer
from coremat.memory_plan import MemoryPlan
from coremat.models import Adapter, adapter_for
from coremat.profile.counted import counted_prefill_flops
from coremat.profile.machine import Machine, measure_machine
from coremat.profile.model_size import ModelSize
from coremat.profile.options import DENSE, BenchOptions
from coremat.profile.random_weights import random_model, random_prompt, with_layers
from coremat.profile.rows import Found, measured_rows, memory_row
from coremat.profile.shipped_config import config_of
from coremat.profile.sides import Limit, Side, decoders
from coremat.profile.support import given_and_skipped
from coremat.profile.timing import AnswerTimes, Inputs
from coremat.profile.workload import Workload
from coremat.progress import Progress, Step
from coremat.results.bench_record import BenchRecord
from coremat.results.bench_rows import BenchMemory, BenchRow

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
    run = _Run(options, torch.device(device), progress)
    try:
        for batch_size in options.batch_sizes:
            run.measure_batch(batch_size)
            keep(run.record())
    except KeyboardInterrupt as stopped:
        return Outcome(run.record(), stopped)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return Outcome(run.record(), UnsupportedError(f"memory ran out at {run.at}; what was finished is kept."))
    finally:
        if run.device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, run.device)
    return Outcome(run.record())


def _is_out_of_memory(error: BaseException) -> bool:
    """On a CPU torch says it in words only."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


class _Run:
    """One model on one device. `at`: what is being done; `skipped`: methods that this model cannot give, and why."""

    def __init__(self, options: BenchOptions, device: torch.device, progress: Progress) -> None:
        self.options, self.device, self._progress = options, device, progress
        self.dtype = _dtype(options.dtype, device)
        self.rows: list[BenchRow] = []
        self.memory: list[BenchMemory] = []
        self._tell("making the model", 0)
        self.config = config_of(options.model)
        self._limit = self._memory_limit()
        self.adapter = self._adapter()
        self.size = ModelSize.of(self.adapter.model.config)
        self.sides = self._sides()

    def _adapter(self) -> Adapter:
        options, here = self.options, self.device
        if self._limit is not None:
            here = torch.device("cpu")  # every side takes to the device what it may have there
        if options.weights == "pretrained":
            return adapter_for(load(options.model, str(here), self._dtype_name).model)
        return adapter_for(random_model(self.config, options.layers, self.dtype, here, options.seed))

    def _sides(self) -> list[Side]:
        found = []
        configs = self.options.configs(self.size.image_tokens, own_prune_layer(self.config))
        given, self.skipped = given_and_skipped(self.adapter.model, configs, DENSE)
        for spec, config in given.items():
            limit, resident = self._offload(config)
            for way in decoders(self.device, self.adapter, config, limit):
                found.append(Side(spec, config, way, self.device, limit, resident))
        return found

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

    def _offload(self, config: SparsityConfig) -> tuple[Limit | None, int]:
        """What a method may take of a small device, and the layers whose FFNs stay on it."""
        if self._limit is None:
            return None, 0
        options = self.options
        kept = config.tokens + options.text_tokens if isinstance(config.tokens, int) else None
        prompt = self.size.image_tokens + options.text_tokens
        plan = MemoryPlan.of(
            self.adapter.model, config, max(options.batch_sizes), prompt, kept, options.new_tokens, self.dtype
        )
        plan.check(self._limit)
        weights = self._limit - plan.dense_kv_cache - plan.activations  # accelerate counts nothing else
        return Limit(self._limit, weights), plan.resident_layers(self._limit)

    # --- running ------------------------------------------------------------------------------------------------

    def measure_batch(self, batch_size: int) -> None:
        """The rows of one batch size; of what was stopped in the middle, those of the sides that answered."""
        inputs = self._prompt(batch_size)
        times: dict[Side, list[AnswerTimes]] = {side: [] for side in self.sides}
        finds: dict[Side, Found] = {}
        try:
            for side in self.sides:
                finds[side] = self._look_at(side, inputs, finds)
            for number in range(self.options.repeats):
                for side in self.sides:
                    self._tell(f"batch {batch_size}, round {number + 1}: {side.label}")
                    times[side].append(side.answer(self.adapter, inputs, self.options.new_tokens))
        finally:
            for side, answers in times.items():
                if answers:
                    self.rows += measured_rows(finds[side], answers)

    def _prompt(self, batch_size: int) -> Inputs:
        options, config = self.options, self.adapter.model.config
        return random_prompt(config, options.text_tokens, batch_size, options.seed, self.dtype, self.device)

    def _look_at(self, side: Side, inputs: Inputs, finds: dict[Side, Found]) -> Found:
        """One short answer for all that is no time: kept tokens, memory, and torch's own count of operations."""
        batch_size = len(inputs["input_ids"])
        self._tell(f"batch {batch_size}, memory: {side.label}")
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        with side.open(self.adapter, batch_size, self.options.new_tokens) as (session, timed):
            seen = timed(inputs, SHORT)
            session.settle()
            kept = round(sum(row.image_tokens_kept for row in session.stats) / batch_size)
            share = session.ffn_share if batch_size > 1 else None
            workspace = session.workspace_bytes
            counted = self._count(inputs) if batch_size == 1 and side.limit is None else None
        config, work = side.config, (self.size.image_tokens, kept, self.options.text_tokens, batch_size)
        own = Workload(self.size, config, *work, dtype=self._dtype_name, ffn_share=share)
        dense = finds[self.sides[0]].workload if finds else own
        found = Found(side.spec, side.decoder, own, dense, self.machine, self.options.new_tokens, counted)
        self.memory.append(memory_row(found, seen.kv_bytes, workspace, self._peak()))
        return found

    def _count(self, inputs: Inputs) -> int:
        return counted_prefill_flops(self.adapter, inputs)

    def _peak(self) -> int | None:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None

    @cached_property
    def machine(self) -> Machine:
        return measure_machine(self.device, self.dtype)

    # --- telling ------------------------------------------------------------------------------------------------

    def _tell(self, at: str, advance: int = 1) -> None:
        self.at = at
        rounds = len(getattr(self, "sides", ())) * (self.options.repeats + 1)
        self._progress(Step(rounds * len(self.options.batch_sizes), at, advance))

    @property
    def _dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def record(self) -> BenchRecord:
        machine, config = self.machine, self.config
        limits = f"measured here: {machine.bandwidth / 1e9:.1f} GB/s, {machine.rate / 1e12:.3g} TFLOP/s"
        found = self.options.image_tokens_kept == "knee"
        about = {
            "model_layers": config.text_config.num_hidden_layers,
            "dtype": self._dtype_name,
            "limits": limits,
            "bandwidth": machine.bandwidth,
            "rate": machine.rate,
            "image_tokens_kept": "found" if found else "given",
            "skipped": self.skipped,
            "flops_convention": CONVENTION,
        }
        attention = str(self.adapter.decoder.config._attn_implementation)
        here = environment(str(self.device), self._dtype_name) | {"attention": attention}
        return BenchRecord(
            self.options.model, tuple(self.rows), tuple(self.memory), self.options.as_dict() | about, here
        )


def _dtype(name: str, device: torch.device) -> torch.dtype:
    """UnsupportedError for one that the device lacks."""
    lacks = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bfloat16" and lacks:
        raise UnsupportedError(
            f"dtype is 'bfloat16', which {torch.cuda.get_device_name(device)} lacks; accepted: float16."
        )
    return DTYPES[("float16" if lacks else "bfloat16") if name == "auto" else name]
