"""The rows of a bench for a device that is not here: nothing is run, everything is counted and marked as projected."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace

from coremat.bench.options import BenchOptions, methods_to_time
from coremat.bench.rows import Measurement, memory_row, projected_rows
from coremat.cost.flops import CONVENTION
from coremat.cost.model_size import ModelSize
from coremat.cost.schedule import Schedule, has_knee
from coremat.cost.workload import Workload
from coremat.errors import UnsupportedError
from coremat.hardware.profiles import GIB, DeviceProfile
from coremat.hardware.roofline import Roofline
from coremat.methods.base import Method
from coremat.models.architecture import bare_model, with_layers
from coremat.models.load import config_of, own_prune_layer
from coremat.names import DENSE
from coremat.results.record.bench import BenchRecord
from coremat.runtime.recorded import recorded

DECODER = "projection"


def project(options: BenchOptions, profile: DeviceProfile) -> BenchRecord:
    """UnsupportedError for a dtype that the device lacks, a cache that it cannot hold, or tokens left to a knee."""
    if options.memory_limit is not None:
        profile = replace(profile, memory_gib=options.memory_limit / GIB, reserved_gib=0.0)
    whole = config_of(options.model)
    dtype = options.dtype if options.dtype != "auto" else _half(profile)
    shown = with_layers(whole, options.layers)
    size = ModelSize.of(shown)
    methods = options.parsed(size, own_prune_layer(whole))
    given, skipped = methods_to_time(bare_model(shown, "meta"), methods)
    _check_known(given, size)
    measurements = list(_measurements(options, given, size, dtype, profile))
    about = {
        "methods": {spec: recorded(method) for spec, method in methods.items()},
        "model_layers": whole.get_text_config().num_hidden_layers,
        "dtype": dtype,
        "profile": asdict(profile),
        "limits": f"rate and bandwidth by the data sheet of {profile.name}",
        "image_tokens_kept": "given",
        "flops_convention": CONVENTION,
        "skipped": skipped,
    }
    return BenchRecord(
        model=options.model,
        rows=tuple(row for one in measurements for row in projected_rows(one, profile)),
        memory=tuple(memory_row(one) for one in measurements),
        config=options.as_dict() | about,
    )


def _check_known(methods: Mapping[str, Method], size: ModelSize) -> None:
    for spec, method in methods.items():
        if has_knee(method, size.layers):
            raise UnsupportedError(
                f"{spec} keeps as many tokens as its knee says, but a projection runs nothing; accepted: a count."
            )


def _half(profile: DeviceProfile) -> str:
    return "bfloat16" if "bfloat16" in profile.tflops else "float16"


def _measurements(
    options: BenchOptions, methods: Mapping[str, Method], size: ModelSize, dtype: str, profile: DeviceProfile
) -> Iterator[Measurement]:
    roofline = Roofline(bandwidth=profile.bandwidth, rate=profile.peak_rate(dtype))
    sizes = size.layers, size.shape, size.image_tokens, options.text_tokens
    for batch in options.batch_sizes:
        works = {spec: Workload(size, Schedule.of(method, *sizes), batch, dtype) for spec, method in methods.items()}
        for spec, work in works.items():
            yield Measurement(spec, DECODER, work, works[DENSE], roofline, options.new_tokens)
