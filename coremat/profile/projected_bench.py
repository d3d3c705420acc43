"""The rows of a bench for a device that is not here: nothing is run, everything is counted and marked as projected."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from coremat.config import SparsityConfig
from coremat.core_tokens import budget
from coremat.errors import UnsupportedError
from coremat.flops import CONVENTION
from coremat.loading import own_prune_layer
from coremat.profile.devices import GIB, DeviceProfile
from coremat.profile.machine import Machine
from coremat.profile.model_size import ModelSize
from coremat.profile.options import DENSE, BenchOptions
from coremat.profile.random_weights import bare_model, with_layers
from coremat.profile.rows import Found, memory_row, projected_rows
from coremat.profile.shipped_config import config_of
from coremat.profile.support import given_and_skipped
from coremat.profile.workload import Workload
from coremat.results.bench_record import BenchRecord

DECODER = "projection"


def project(options: BenchOptions, profile: DeviceProfile) -> BenchRecord:
    """UnsupportedError for a dtype that the device lacks, a cache that it cannot hold, or tokens left to a knee."""
    if options.memory_limit is not None:
        profile = replace(profile, memory_gib=options.memory_limit / GIB, reserved_gib=0.0)
    whole = config_of(options.model)
    dtype = options.dtype if options.dtype != "auto" else _half(profile)
    shown = with_layers(whole, options.layers)
    size = ModelSize.of(shown)
    if isinstance(options.kept(size.image_tokens), str):
        raise UnsupportedError("image_tokens_kept is 'knee', but a projection runs nothing; accepted: a count.")
    configs = options.configs(size.image_tokens, own_prune_layer(whole))
    given, skipped = given_and_skipped(bare_model(shown, "meta"), configs, DENSE)
    finds = list(_finds(options, given, size, dtype, profile))
    about = {"model_layers": whole.text_config.num_hidden_layers, "dtype": dtype, "profile": asdict(profile)}
    about |= {"limits": f"rate and bandwidth by the data sheet of {profile.name}", "image_tokens_kept": "given"}
    about |= {"flops_convention": CONVENTION, "skipped": skipped}
    return BenchRecord(
        model=options.model,
        rows=tuple(row for found in finds for row in projected_rows(found, profile)),
        memory=tuple(memory_row(found) for found in finds),
        config=options.as_dict() | about,
    )


def _half(profile: DeviceProfile) -> str:
    return "bfloat16" if "bfloat16" in profile.tflops else "float16"


def _finds(
    options: BenchOptions, configs: dict[str, SparsityConfig], size: ModelSize, dtype: str, profile: DeviceProfile
) -> Iterator[Found]:
    machine = Machine(bandwidth=profile.bandwidth, rate=profile.peak_rate(dtype))
    for batch in options.batch_sizes:
        works: dict[str, Workload] = {}
        for spec, config in configs.items():
            kept = _kept(config.tokens, size.image_tokens)
            works[spec] = Workload(size, config, size.image_tokens, kept, options.text_tokens, batch, dtype)
        for spec, work in works.items():
            yield Found(spec, DECODER, work, works[DENSE], machine, options.new_tokens)


def _kept(tokens: Any, image_tokens: int) -> int:
    """A count, or a share, or "all"."""
    if isinstance(tokens, str):
        return image_tokens
    return budget(tokens, image_tokens)
