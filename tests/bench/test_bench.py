"""A bench of a tiny model: what is in the record, who answers when, and what is left when it is stopped."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from no_memory import NO_MEMORY
from tiny import PER_IMAGE, tiny_llava
from transformers import DynamicCache

from coremat.bench.counted_flops import counted_prefill_flops
from coremat.bench.options import BenchOptions
from coremat.bench.random_weights import random_prompt
from coremat.bench.run import bench
from coremat.bench.timing import AnswerTimes
from coremat.bench.variants import GRAPH, STREAMED, Variant
from coremat.cost.model_size import ModelSize
from coremat.cost.schedule import budgets
from coremat.errors import ConfigError, CorematError, UnsupportedError
from coremat.hardware.roofline import Roofline
from coremat.methods.registry import parse
from coremat.models.architecture import shipped_config
from coremat.models.families import adapter_for
from coremat.models.known import KNOWN_MODELS
from coremat.results.record.bench import ACCELERATE, EAGER, IN_PLACE
from coremat.results.record.bench_rows import DECODE, END_TO_END, GATHERING, PHASES, PREFILL, SELECTION, VISION
from coremat.results.tables.bench_notes import setting_notes
from coremat.runtime import support
from coremat.runtime.cache import InPlaceCache

LAYERS, TEXT, KEPT, NEW, ROUNDS = 4, 7, 5, 6, 2
KEY_VALUE_BYTES = 2 * 2 * 16 * 4  # keys and values, two heads of 16, float32
FFN_BYTES = LAYERS * 3 * 160 * 64 * 4
METHODS = ("corematching", "core-neurons:beta=0.2", "core-tokens", "dense")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a config and no weights."""
    path = tmp_path_factory.mktemp("tiny")
    tiny_llava().config.save_pretrained(path)
    return str(path)


@pytest.fixture
def options(folder: str) -> BenchOptions:
    small = {"layers": LAYERS, "text_tokens": TEXT, "new_tokens": NEW, "repeats": ROUNDS, "image_tokens_kept": KEPT}
    return BenchOptions(folder, METHODS, device="cpu", dtype="float32", **small)


@pytest.fixture(autouse=True)
def machine(quick_machine: None) -> None:
    pass


@pytest.fixture(scope="module")
def outcome(folder: str):
    small = {"layers": LAYERS, "text_tokens": TEXT, "new_tokens": NEW, "repeats": ROUNDS, "image_tokens_kept": KEPT}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coremat.bench.measure.measure_roofline", lambda device, dtype: Roofline(1e10, 1e11))
        return bench(BenchOptions(folder, METHODS, device="cpu", dtype="float32", batch_sizes=(1, 2), **small))


def rows(record, method: str, phase: str, batch_size: int = 1) -> list:
    """Of dense those on Hugging Face's own cache."""
    own = [row for row in record.rows if (row.method, row.batch_size) == (method, batch_size)]
    return [row for row in own if row.phase == phase and (method != "dense" or row.decoder != IN_PLACE)]


def test_dense_is_first_and_every_method_has_its_phases(outcome):
    record = outcome.record
    assert outcome.stopped is None
    assert list(dict.fromkeys(row.method for row in record.rows)) == ["dense", *METHODS[:-1]]
    sparse = {VISION, PREFILL, SELECTION, GATHERING, DECODE, END_TO_END}
    expected = {
        "dense": {VISION, PREFILL, DECODE, END_TO_END},
        "corematching": sparse,
        "core-neurons:beta=0.2": sparse,
        "core-tokens": {VISION, PREFILL, SELECTION, DECODE, END_TO_END},
    }
    for method, phases in expected.items():
        assert {phase for phase in PHASES if rows(record, method, phase)} == phases, method


def test_every_time_is_kept(outcome):
    assert all(len(row.samples_ms) == ROUNDS and not row.projected for row in outcome.record.rows)
    assert [row.new_tokens for row in rows(outcome.record, "dense", END_TO_END)] == [1, 2, 4, 6]
    whole = rows(outcome.record, "dense", END_TO_END)
    assert whole[0].samples_ms < whole[-1].samples_ms


def test_parts_are_no_more_than_the_whole(outcome):
    for method in ("dense", "corematching"):
        first = rows(outcome.record, method, END_TO_END)[0].samples_ms
        [vision], [prefill] = rows(outcome.record, method, VISION), rows(outcome.record, method, PREFILL)
        for whole, tower, decoder in zip(first, vision.samples_ms, prefill.samples_ms, strict=True):
            assert tower + decoder < whole
    [prefill], [selection] = (rows(outcome.record, "core-tokens", phase) for phase in (PREFILL, SELECTION))
    assert all(part < whole for part, whole in zip(selection.samples_ms, prefill.samples_ms, strict=True))


def test_what_is_kept_is_as_asked(outcome):
    for method, kept, neurons in (
        ("dense", PER_IMAGE, 160),
        ("corematching", KEPT, 64),
        ("core-neurons:beta=0.2", PER_IMAGE, 32),
    ):
        [row] = rows(outcome.record, method, PREFILL)
        assert (row.prompt_tokens, row.image_tokens, row.image_tokens_kept) == (PER_IMAGE + TEXT, PER_IMAGE, kept)
        assert (row.neurons, row.neurons_kept, row.layers) == (160, neurons, LAYERS)


def test_operations_by_formula_are_those_that_torch_counts(outcome):
    for method in ("dense", *METHODS[:-1]):
        [row] = rows(outcome.record, method, PREFILL)
        assert row.flops == row.flops_counted > 0
    assert rows(outcome.record, "dense", PREFILL, batch_size=2)[0].flops_counted is None


def test_cache_bytes_are_those_of_what_is_kept_exactly(outcome):
    for entry in outcome.record.memory:
        kept = PER_IMAGE if entry.method in ("dense", "core-neurons:beta=0.2") else KEPT
        expected = entry.batch_size * LAYERS * (kept + TEXT) * KEY_VALUE_BYTES
        assert entry.kv_cache_mib * 2**20 == expected
        assert entry.kv_cache_mib_paper * 2**20 == expected / 2  # at 16 bit


def test_memory_beside_the_model_is_no_more_than_the_core_neurons(outcome):
    for entry in outcome.record.memory:
        beta = {"corematching": 0.4, "core-neurons:beta=0.2": 0.2}.get(entry.method, 0)
        assert entry.workspace_mib * 2**20 <= beta * entry.batch_size * FFN_BYTES
        assert bool(entry.workspace_mib) == bool(beta)
        assert entry.peak_gb is None


def test_limits_are_of_this_machine_and_speed_ups_of_work(outcome):
    [row] = rows(outcome.record, "corematching", PREFILL)
    machine = outcome.record.config
    seconds = max(row.flops / machine["rate"], row.bytes / machine["bandwidth"])
    assert row.limit_ms == pytest.approx(1000 * seconds)
    [dense] = rows(outcome.record, "dense", PREFILL)
    assert row.limit_speedup == pytest.approx(dense.flops / row.flops)
    assert row.limit_speedup > 1
    [decode], [dense] = rows(outcome.record, "corematching", DECODE), rows(outcome.record, "dense", DECODE)
    assert decode.limit_speedup == pytest.approx(dense.bytes / decode.bytes)
    assert decode.limit_speedup > 1


def test_the_record_says_how_it_was_made(outcome):
    config = outcome.record.config
    about = {"weights": "random", "layers": LAYERS, "model_layers": 6, "image_tokens_kept": "given", "repeats": ROUNDS}
    assert about.items() <= config.items()
    assert config["batch_sizes"] == (1, 2)
    assert {"versions", "cpu", "threads", "device", "dtype", "attention"} <= set(outcome.record.environment)


def test_it_is_read_as_it_was_written(outcome, tmp_path):
    outcome.record.write(tmp_path)
    assert type(outcome.record).read(tmp_path).rows == outcome.record.rows


def test_kept_tokens_may_be_found(options):
    record = bench(replace(options, image_tokens_kept="knee", methods=("corematching",), repeats=1)).record
    assert record.config["image_tokens_kept"] == "found"
    [row] = rows(record, "corematching", PREFILL)
    assert 1 <= row.image_tokens_kept <= PER_IMAGE


def test_one_new_token_takes_no_step(options):
    record = bench(replace(options, new_tokens=1, repeats=1)).record
    assert not [row for row in record.rows if row.phase in (DECODE, GATHERING)]


def fake_times(answered: list[str], end: int, error: BaseException):
    """Stands in for `Variant.answer`: notes who answers, and fails at the answer number `end`."""

    def answer(variant: Variant, adapter: object, inputs: object, new_tokens: int) -> AnswerTimes:
        answered.append(variant.spec)
        if len(answered) == end:
            raise error
        return AnswerTimes(0.1, 0.2, 0.0, 0.0, tuple(0.5 + 0.1 * n for n in range(new_tokens)), 0)

    return answer


def test_the_variants_take_turns(options, monkeypatch):
    answered: list[str] = []
    monkeypatch.setattr(Variant, "answer", fake_times(answered, 0, MemoryError()))
    bench(options)
    assert answered == ["dense", "dense", *METHODS[:-1]] * ROUNDS


@pytest.mark.parametrize("error", [*NO_MEMORY, KeyboardInterrupt()], ids=str)
def test_what_was_finished_is_kept(options, monkeypatch, error):
    monkeypatch.setattr(Variant, "answer", fake_times([], 4, error))
    outcome = bench(options)
    assert list(dict.fromkeys(row.method for row in outcome.record.rows)) == ["dense", "corematching"]
    assert {len(row.samples_ms) for row in outcome.record.rows} == {1}
    if isinstance(error, KeyboardInterrupt):
        assert outcome.stopped is error
    else:
        assert isinstance(outcome.stopped, UnsupportedError)
        at = "batch 1, round 1: core-neurons:beta=0.2, in-place cache"
        assert str(outcome.stopped) == f"memory ran out at {at}; what was finished is kept."


def test_no_memory_for_the_model_itself_is_one_sentence(options, monkeypatch):
    def no_room(*words: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12")

    monkeypatch.setattr("coremat.bench.measure.random_model", no_room)
    with pytest.raises(UnsupportedError, match=r"^memory ran out while making the model: DefaultCPUAllocator: can't"):
        bench(options)


def test_a_fault_is_no_lack_of_memory(options, monkeypatch):
    monkeypatch.setattr(Variant, "answer", fake_times([], 3, RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        bench(options)


def test_every_batch_size_is_kept_when_it_is_done(options, monkeypatch):
    monkeypatch.setattr(Variant, "answer", fake_times([], 0, MemoryError()))
    seen: list[set[int]] = []
    bench(replace(options, batch_sizes=(1, 2)), keep=lambda record: seen.append({r.batch_size for r in record.rows}))
    assert seen == [{1}, {1, 2}]


def test_progress_counts_up_to_its_total(options, monkeypatch):
    monkeypatch.setattr(Variant, "answer", fake_times([], 0, MemoryError()))
    steps = []
    bench(replace(options, batch_sizes=(1, 2)), progress=steps.append)
    assert steps[-1].total == sum(step.advance for step in steps) == 2 * 5 * (ROUNDS + 1)


def test_a_device_too_small_for_dense_streams_its_ffns(options, monkeypatch):
    """The CPU stands for such a device; the plan is what decides how many layers stay on it."""
    monkeypatch.setattr("coremat.bench.measure._Run._memory_limit", lambda run: 1_500_000)
    outcome = bench(replace(options, methods=("core-neurons", "fastv"), repeats=1))
    assert outcome.stopped is None
    decoders = {(row.method, row.decoder) for row in outcome.record.rows}
    assert decoders == {
        *(("core-neurons", decoder) for decoder in (IN_PLACE, GRAPH)),
        *((method, decoder) for method in ("dense", "fastv") for decoder in (ACCELERATE, STREAMED)),
    }
    monkeypatch.setattr("coremat.bench.measure._Run._memory_limit", lambda run: 1000)
    with pytest.raises(UnsupportedError, match=r"the memory limit is 0\.00 MB, but this model needs"):
        bench(options)


def test_dense_is_there_as_users_have_it_and_on_the_cache_of_the_methods(outcome):
    decoders = {row.method: set() for row in outcome.record.rows}
    for row in outcome.record.rows:
        decoders[row.method].add(row.decoder)
    assert decoders.pop("dense") == {EAGER, IN_PLACE}
    assert set(map(frozenset, decoders.values())) == {frozenset({IN_PLACE})}


@pytest.mark.parametrize(("decoder", "kind"), [(EAGER, DynamicCache), (IN_PLACE, InPlaceCache)])
def test_each_dense_decoder_has_its_own_cache(decoder, kind, monkeypatch):
    model, seen = tiny_llava(), []
    generate = type(model).generate
    monkeypatch.setattr(
        type(model),
        "generate",
        lambda *args, **kwargs: seen.append(kwargs["past_key_values"]) or generate(*args, **kwargs),
    )
    inputs = random_prompt(model.config, TEXT, dtype=torch.float32)
    Variant("dense", parse("dense"), decoder, torch.device("cpu")).answer(adapter_for(model), inputs, NEW)
    assert {type(cache) for cache in seen} == {kind}


@pytest.mark.parametrize("decoder", [EAGER, IN_PLACE, GRAPH])
def test_every_decoder_is_timed(decoder):
    model = tiny_llava()
    inputs = random_prompt(model.config, TEXT, dtype=torch.float32)
    variant = Variant("corematching", parse("corematching"), decoder, torch.device("cpu"))
    times = variant.answer(adapter_for(model), inputs, NEW)
    assert len(times.tokens) == NEW
    assert list(times.tokens) == sorted(times.tokens)
    assert min(times.vision, times.prefill, times.selection, times.gathering, times.decode) > 0
    assert times.vision + times.prefill < times.tokens[0]


def test_counting_leaves_the_attention_as_it_was():
    model = tiny_llava()
    counted_prefill_flops(adapter_for(model), random_prompt(model.config, TEXT, dtype=torch.float32))
    assert model.get_decoder().config._attn_implementation == "sdpa"


def test_a_device_that_is_not_here_is_projected(folder, tmp_path):
    record = bench(BenchOptions(folder, METHODS, device="titanxp", dtype="float16", image_tokens_kept=KEPT)).record
    assert all(row.projected for row in record.rows)
    assert all(entry.projected for entry in record.memory)
    assert record.config["profile"]["name"] == "titanxp"
    [vision], [prefill] = rows(record, "dense", VISION), rows(record, "dense", PREFILL)
    assert rows(record, "dense", END_TO_END)[0].median_ms == pytest.approx(vision.median_ms + prefill.median_ms)


def test_a_profile_without_the_dtype_is_refused(folder):
    with pytest.raises(CorematError, match="bfloat16"):
        bench(BenchOptions(folder, METHODS, device="titanxp", dtype="bfloat16"))


def test_a_projection_takes_half_precision_that_the_device_has(folder):
    record = bench(BenchOptions(folder, METHODS, device="titanxp")).record
    assert record.config["dtype"] == "float16"


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_every_named_model_is_projected(name):
    record = bench(BenchOptions(name, ("corematching", "core-neurons", "visionzip"), device="titanxp")).record
    skipped = record.config["skipped"]
    assert {row.method for row in record.rows} == {"dense", "corematching", "core-neurons", "visionzip"} - set(skipped)
    assert set(skipped) <= {"corematching", "visionzip"}
    assert ("corematching" in skipped) == (KNOWN_MODELS[name].methods == "neurons only")
    sees = KNOWN_MODELS[name].image_tokens != "none"
    assert bool(rows(record, "dense", VISION)) == sees
    for phase in (VISION, PREFILL, DECODE):
        assert all(row.limit_ms > 0 for row in rows(record, "dense", phase))
    [dense], [sparse] = rows(record, "dense", DECODE), rows(record, "core-neurons", DECODE)
    assert sparse.bytes < dense.bytes


def refusing_check(monkeypatch, method: str, error: CorematError) -> None:
    """From here on `check` refuses this method alone."""
    refused = parse(method)

    def check(model, given) -> None:
        if type(given) is type(refused):
            raise error

    monkeypatch.setattr(support, "check", check)


def test_what_a_model_cannot_give_is_skipped_with_its_reason(folder, monkeypatch):
    refusing_check(monkeypatch, "corematching", UnsupportedError("not here."))
    record = bench(BenchOptions(folder, METHODS, device="titanxp")).record
    assert record.config["skipped"] == {"corematching": "not here."}
    assert "corematching" not in {row.method for row in record.rows}
    assert "corematching was skipped: not here." in list(setting_notes(record))


def test_a_bad_value_and_a_refused_dense_end_the_bench(options, monkeypatch):
    refusing_check(monkeypatch, "corematching", ConfigError("wrong value."))
    with pytest.raises(ConfigError, match="wrong value"):
        bench(options)
    refusing_check(monkeypatch, "dense", UnsupportedError("no model."))
    with pytest.raises(UnsupportedError, match="no model"):
        bench(options)


def test_a_projection_cannot_find_a_knee(folder):
    with pytest.raises(UnsupportedError, match="knee"):
        bench(BenchOptions(folder, METHODS, device="titanxp", image_tokens_kept="knee"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"new_tokens": 0}, "new_tokens is 0; accepted"),
        ({"repeats": 0}, "repeats is 0"),
        ({"text_tokens": 0}, "text_tokens is 0"),
        ({"batch_sizes": ()}, "batch_size is empty"),
        ({"batch_sizes": (1, 0)}, "batch_size is 0"),
        ({"weights": "none"}, "weights is 'none'; accepted: random, pretrained"),
        ({"weights": "pretrained", "layers": 4}, "layers is 4 with pretrained"),
        ({"dtype": "int8"}, "dtype is 'int8'; accepted"),
        ({"image_tokens_kept": 0}, "image_tokens_kept is 0"),
        ({"image_tokens_kept": "half"}, "image_tokens_kept is 'half'"),
        ({"methods": ("fast",)}, "unknown method 'fast'"),
    ],
)
def test_bad_options_are_refused_before_anything_is_built(changes, words):
    with pytest.raises(CorematError, match=words):
        BenchOptions(**({"model": "llava-1.5-7b", "methods": ("dense",)} | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "llava-7b"}, "unknown model 'llava-7b': did you mean"),
        ({"device": "titan"}, "unknown device 'titan': did you mean 'titanxp'"),
        ({"device": "cuda:7"}, "device is 'cuda:7'"),
        ({"layers": 7}, "layers is 7; accepted: 1 to 6"),
        ({"layers": 2}, "corematching prunes after 2 decoder layers"),
        ({"image_tokens_kept": 99}, "image_tokens_kept is 99"),
        ({"memory_limit": 10**9}, "memory_limit"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_run(options, changes, words):
    with pytest.raises(CorematError, match=words):
        bench(replace(options, **changes))


def test_pretrained_weights_that_are_not_here_are_refused(folder):
    with pytest.raises(CorematError, match="cannot be loaded as a model"):
        bench(BenchOptions(folder, ("dense",), device="cpu", weights="pretrained"))


@pytest.mark.parametrize(("model", "kept"), [("llava-1.5-7b", 64), ("shapes-llava", 16)])
def test_the_papers_average_is_kept_where_nothing_is_said(model, kept):
    size = ModelSize.of(shipped_config(model))
    method = BenchOptions(model, ("corematching",)).parsed(size, 2)["corematching"]
    assert budgets(method, size.layers, size.image_tokens) == [kept]


def budgets_of(options: BenchOptions) -> dict[str, list[int | None]]:
    size = ModelSize.of(shipped_config("llava-1.5-7b"))
    return {spec: budgets(method, size.layers, size.image_tokens) for spec, method in options.parsed(size, 2).items()}


def test_tokens_that_were_typed_stay(folder):
    typed = (
        "corematching",
        "corematching:tokens=9",
        "corematching:tokens=knee",
        "fastv",
        "fastv:tokens=9+core-neurons",
    )
    assert budgets_of(BenchOptions(folder, typed)) == {
        "dense": [],
        "corematching": [64],
        "corematching:tokens=9": [9],
        "corematching:tokens=knee": [None],
        "fastv": [288],
        "fastv:tokens=9+core-neurons": [9],
    }


def test_one_budget_for_all_that_prune_tokens(folder):
    options = BenchOptions(folder, ("corematching", "fastv", "divprune:tokens=9", "core-neurons"), image_tokens_kept=7)
    assert list(budgets_of(options).values()) == [[], [7], [7], [9], []]


OWN = '''"""Keys with a short norm stay."""
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from coremat.methods.base import Method, Stage
from coremat.methods.options import Budget
from coremat.methods.views import LayerView


@dataclass(frozen=True, kw_only=True)
class ShortKeys(Method):
    tokens: Budget = "knee"

    def stages(self, layers: int) -> Sequence[Stage]:
        return (Stage(1, 9, earlier_cache="full"), Stage(2, self.tokens))

    def score(self, stage: Stage, layer: LayerView) -> torch.Tensor:
        return -layer.keys.norm(dim=-1).mean(1)
'''


def test_a_method_of_ones_own_is_measured_and_projected(options, tmp_path):
    """In two stages: layer 0 keeps every position, the later cut reaches layer 1."""
    path = tmp_path / "own.py"
    path.write_text(OWN)
    spec = f"{path}:ShortKeys"
    measured = bench(replace(options, methods=(spec,), repeats=1)).record
    projected = bench(replace(options, methods=(spec,), device="titanxp", dtype="float16")).record
    for record in (measured, projected):
        assert record.config["methods"][spec]["source"]["file"] == "own.py"
        [row] = rows(record, spec, PREFILL)
        assert row.image_tokens_kept == KEPT
    assert measured.memory[2].kv_cache_mib * 2**20 == LAYERS * (KEPT + TEXT) * KEY_VALUE_BYTES
    assert rows(measured, spec, DECODE)[0].flops == rows(projected, spec, DECODE)[0].flops


def test_full_caches_are_in_the_record_as_the_tensors_hold_them(options):
    """Two layers before FastV's stage keep every position, two behind it those that are left."""
    spec = "fastv"
    record = bench(replace(options, methods=(spec,), repeats=1)).record
    held = record.memory[2].kv_cache_mib * 2**20
    assert held == KEY_VALUE_BYTES * (2 * (PER_IMAGE + TEXT) + 2 * (KEPT + TEXT))
    [step], [dense] = rows(record, spec, DECODE), rows(record, "dense", DECODE)
    spared = LAYERS * (PER_IMAGE + TEXT) * KEY_VALUE_BYTES - held
    assert dense.bytes - step.bytes == spared


def test_the_record_says_what_each_method_is(outcome):
    methods = outcome.record.config["methods"]
    assert list(methods) == ["dense", *METHODS[:-1]]
    assert methods["core-neurons:beta=0.2"]["options"]["beta"] == 0.2
    assert methods["corematching"]["options"]["tokens"] == KEPT


def test_a_profile_of_ones_own(folder, tmp_path: Path):
    profile = tmp_path / "mine.json"
    profile.write_text('{"name": "mine"}')
    with pytest.raises(CorematError, match="lacks memory_gib"):
        bench(BenchOptions(folder, METHODS, device=str(profile)))
