"""Does a method hold what every method has to hold? Asked on tiny random models of every family, in minutes on a CPU.

    for finding in check_method("./mine.py:ShortKeys"):
        print(finding)

`INVARIANTS` are the questions. What a family or a method cannot be asked is "not applicable", with the reason; an error
of coremat or of the method is a failure, in the words of the error.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import coremat
from coremat.cost.schedule import Schedule
from coremat.decoding.graph_decoder import GraphDecoder, why_unsupported
from coremat.errors import ConfigError, CorematError, UnknownNameError, UnsupportedError
from coremat.methods import registry
from coremat.methods.base import Method, Reduction, Stage
from coremat.methods.budget import budget
from coremat.methods.layer_shares import FIRST_DENSE
from coremat.methods.views import ImageView, LayerView
from coremat.models.adapter import Adapter
from coremat.models.families import adapter_for
from coremat.models.shape import ATTENTION
from coremat.runtime.calibration import calibrate, calibrated_part
from coremat.runtime.layer_costs import divided_part
from coremat.runtime.questions import spelled
from coremat.runtime.session import Session, check
from coremat.testing.answers import Answer, answer
from coremat.testing.dense_reference import chosen, hidden_and_silenced, merged_states
from coremat.testing.families import FAMILIES, Family
from coremat.testing.families.family import prompts_of

NEW = 4  # tokens of each answer
CALIBRATION_TOKENS = 12  # of each answer that a method is calibrated on
TIGHT = 1e-4  # logits are of order one; float32
BATCHES = ("one", "left-padded", "several images", "video")


@dataclass(frozen=True)
class Finding:
    """ok: whether the invariant holds; None where it cannot be asked. detail: a figure or a sentence; error: the
    largest logit error, where one was measured."""

    family: str
    invariant: str
    ok: bool | None
    detail: str = ""
    error: float | None = None

    def __str__(self) -> str:
        verdict = {True: "holds", False: "FAILS", None: "not applicable"}[self.ok]
        return f"{self.family:<16} {self.invariant:<24} {verdict}{': ' if self.detail else ''}{self.detail}"


class NotApplicable(Exception):
    """Raised by an invariant that cannot be asked of this method or family, with the reason."""


class Broken(Exception):
    """Raised by an invariant that does not hold, with what was found."""


def check_method(method: Method | str, families: Sequence[str] | None = None) -> Iterator[Finding]:
    """Every invariant on every family, as it is found out. UnknownNameError for a family that there is not, ConfigError
    for a method that there is not."""
    checked = registry.method(method)
    for name in families or FAMILIES:
        if name not in FAMILIES:
            raise UnknownNameError("family", name, FAMILIES)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them cost more than they bring on models of this size
    try:
        for name in families or FAMILIES:
            yield from check_on(checked, FAMILIES[name])
    finally:
        torch.set_num_threads(threads)


def check_on(method: Method, family: Family) -> Iterator[Finding]:
    """Every invariant on one family; one line where the family cannot give the method.

    A method that needs a calibration and has none is calibrated on the family's tiny model.
    """
    with TemporaryDirectory() as folder:
        yield from _findings(method, family, Path(folder) / "calibration.safetensors")


def _findings(method: Method, family: Family, file: Path) -> Iterator[Finding]:
    try:
        method = calibrated(method, family, file)
        check(tiny(family), method)
    except UnsupportedError as error:
        yield Finding(family.name, "all", None, str(error))
        return
    except CorematError as error:
        yield Finding(family.name, "all", False, str(error))
        return
    for invariant, ask in INVARIANTS.items():
        if ask is layers_differ and not _has_layer_shares(method):
            continue
        finding = _asked(method, family, invariant, ask)
        if finding.ok is False:  # who knows what was left on the models
            _models().clear()
        yield finding


def calibrated(method: Method, family: Family, file: Path) -> Method:
    """The method as it is, or, where it needs a calibration and has none, with one of its own in `file`."""
    if not method.takes("calibrate") or calibrated_part(method).calibration is not None:
        return method
    batches = [family.batch("left-padded"), family.batch("one")]
    calibrate(tiny(family), method, batches, CALIBRATION_TOKENS).write(file)
    return registry.with_options(method, calibration=str(file))


def _asked(method: Method, family: Family, invariant: str, ask: "Ask") -> Finding:
    try:
        error = ask(method, family)
    except NotApplicable as reason:
        return Finding(family.name, invariant, None, str(reason))
    except Broken as found:
        return Finding(family.name, invariant, False, str(found))
    except Exception as raised:  # a stranger's method may raise anything, and that is what is reported
        return Finding(family.name, invariant, False, f"{type(raised).__name__}: {raised}")
    return Finding(family.name, invariant, True, "" if error is None else f"largest logit error {error:.1e}", error)


@cache
def _models() -> dict[tuple[str, torch.dtype], Any]:
    return {}


def tiny(family: Family, dtype: torch.dtype = torch.float32) -> Any:
    """The family's tiny model, made once."""
    models = _models()
    if (family.name, dtype) not in models:
        models[family.name, dtype] = family.model(dtype=dtype)
    return models[family.name, dtype]


@contextmanager
def _applied(model: Any, method: Method) -> Iterator[Session]:
    """Dummy prompts have words, too, for methods that read them."""
    with coremat.apply(model, method) as session:
        session.questions = spelled
        yield session


# --- dropped equals hidden -------------------------------------------------------------------------------------------


def dropped_equals_hidden(method: Method, family: Family) -> float:
    """The logits of the pruned model are those of the dense one, in which dropped tokens are hidden and the other
    neurons silenced; in batches with padding, several images and videos."""
    batches = [name for name in BATCHES if name in family.batches]
    return max(_compared(method, tiny(family), family.batch(name)) for name in batches)


def beams(method: Method, family: Family) -> float:
    """The same while beams are searched."""
    return _compared(method, tiny(family), family.batch("one"), num_beams=2)


def _compared(method: Method, model: Any, inputs: Mapping[str, Any], **options: Any) -> float:
    sparse, choice = _sparse(method, model, inputs, **options)
    with hidden_and_silenced(model, method, choice):
        dense = answer(model, dict(inputs), NEW, **options)
    return _same(sparse, dense)


def _sparse(method: Method, model: Any, inputs: Mapping[str, Any], **options: Any) -> tuple[Answer, Any]:
    with _applied(model, method) as session, merged_states(session) as merged:
        sparse = answer(model, dict(inputs), NEW, **options)
        return sparse, chosen(session, merged)


def _same(found: Answer, expected: Answer) -> float:
    error = float((found.logits - expected.logits).abs().max())
    if not error < TIGHT:
        raise Broken(f"logits differ by {error:.2g} from the dense model in which the dropped tokens are hidden")
    if not torch.equal(found.tokens, expected.tokens):
        raise Broken("other tokens than the dense model in which the dropped tokens are hidden")
    return error


def layers_differ(method: Method, family: Family) -> float:
    """The same, and what is counted beforehand, where layer 0 is whole and the others have less.

    In float64: a threshold is a magnitude that was seen, and in float32 its own token may fall on either side of it.
    """
    unequal = _first_dense(method, _depth(family))
    schedule_is_observed(unequal, family)
    return _compared(unequal, tiny(family, torch.float64), family.batch("one", torch.float64))


def _has_layer_shares(method: Method) -> bool:
    try:
        divided_part(method)
    except ConfigError:
        return False
    return True


def _first_dense(method: Method, layers: int) -> Method:
    try:
        unequal = registry.with_options(method, layer_shares=FIRST_DENSE)
        unequal.by_layer(layers)
    except ConfigError as error:
        raise NotApplicable(str(error)) from error
    return unequal


def second_turn(method: Method, family: Family) -> float:
    """New text after the answer, on the cache that is left: as after the dense answer with hidden tokens."""
    model, inputs = tiny(family), family.batch("left-padded")
    with _applied(model, method) as session, merged_states(session) as merged:
        sparse = _two_turns(model, inputs)
        choice = chosen(session, merged)
    with hidden_and_silenced(model, method, choice):
        dense = _two_turns(model, inputs)
    error = float((sparse - dense).abs().max())
    if not error < TIGHT:
        raise Broken(f"logits of the second turn differ by {error:.2g}")
    return error


def _two_turns(model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    first = model.generate(
        **inputs, max_new_tokens=2, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    ids = torch.cat([first.sequences, torch.tensor([[40, 41, 42]]).expand(len(first.sequences), -1)], 1)
    mask = torch.cat([inputs["attention_mask"], torch.ones(len(ids), ids.shape[1] - inputs["input_ids"].shape[1])], 1)
    again = {"attention_mask": mask.long(), "past_key_values": first.past_key_values}
    kinds = {
        name: torch.cat([value, value.new_zeros(len(ids), ids.shape[1] - value.shape[1])], 1)
        for name, value in inputs.items()
        if name in ("token_type_ids", "mm_token_type_ids")
    }
    second = model.generate(
        ids, **again, **kinds, max_new_tokens=2, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    return torch.stack(second.logits, 1)


# --- nothing dropped, a row alone, another dtype ----------------------------------------------------------------------


def everything_kept_is_dense(method: Method, family: Family) -> float:
    """Through the sparse path, with every token and neuron kept, the answer is the dense model's."""
    if any(map(method.takes, ("decode_ffn", "linear", "edit_cache"))):
        raise NotApplicable("what it does at each token has no setting that does nothing")
    model, inputs = tiny(family), family.batch("left-padded")
    sparse, _ = _sparse(KeepsEverything(method), model, inputs)
    return _same(sparse, answer(model, dict(inputs), NEW))


class KeepsEverything(Method):
    """Another method's slots, with budgets of everything."""

    name = "everything"

    def __init__(self, method: Method) -> None:
        self.method = method

    def takes(self, slot: str) -> bool:
        return slot not in ("decode_ffn", "linear") and self.method.takes(slot)

    def setup(self, model: Any) -> Any:
        return self.method.setup(model)

    def stages(self, layers: int) -> Sequence[Stage]:
        return [
            Stage(stage.after, 1.0, stage.positions, stage.earlier_cache)
            for stage in self.method.stages(layers)
            if stage.keep != "all"
        ]

    def tower_layers(self) -> Sequence[int]:
        return self.method.tower_layers()

    def before_projector(self, image: ImageView, keep: int | None) -> Reduction:
        return self.method.before_projector(image, keep)

    def share_tiles(self, tiles: Sequence[ImageView], keep: int) -> Sequence[int]:
        return self.method.share_tiles(tiles, keep)

    def before_decoder(self, image: ImageView, keep: int | None) -> Reduction:
        return self.method.before_decoder(image, keep)

    def smaller_grids(self, grid: tuple[int, int]) -> Sequence[tuple[int, int]]:
        return self.method.smaller_grids(grid)

    def score(self, stage: Stage, layer: LayerView) -> torch.Tensor:
        return self.method.score(stage, layer)

    def recycle(self, stage: Stage, hidden: torch.Tensor, scores: torch.Tensor, keep: torch.Tensor) -> Reduction:
        return self.method.recycle(stage, hidden, scores, keep)

    def neurons(self, layer: LayerView) -> torch.Tensor:
        rows, _, size = layer.activations.shape
        return torch.arange(size, device=layer.activations.device).expand(rows, -1)


def a_row_alone_as_in_a_batch(method: Method, family: Family) -> None:
    """Each prompt of a padded batch keeps the tokens and neurons, and gives the answer, that it has alone (float64)."""
    if method.shares_neurons():
        raise NotApplicable("it chooses one set of neurons for the whole batch")
    model, name = tiny(family, torch.float64), family.rows
    together, tokens = _picks(method, model, family.batch(name, torch.float64))
    for row, prompt in enumerate(prompts_of(name)):
        [alone], own = _picks(method, model, family.inputs([prompt], torch.float64))
        if alone != together[row]:
            raise Broken(f"row {row} of a batch keeps {together[row][0]}, and alone {alone[0]}")
        if not torch.equal(own[0], tokens[row]):
            raise Broken(f"row {row} of a batch gives another answer than alone")


def _picks(method: Method, model: Any, inputs: Mapping[str, Any]) -> tuple[list[Any], torch.Tensor]:
    """For each row the image tokens and the neurons that it keeps, and its answer."""
    with _applied(model, method) as session:
        tokens = answer(model, dict(inputs), NEW).tokens
        neurons = session.prompt.neurons
        rows = [
            (row.kept, {layer: core[number % len(core)].tolist() for layer, core in neurons.items()})
            for number, row in enumerate(session.stats)
        ]
    return rows, tokens


def prompt_after_prompt(method: Method, family: Family) -> None:
    """A prompt leaves nothing to the next one in the same block."""
    model = tiny(family)
    first, second = family.batch("one"), family.batch("left-padded")
    with _applied(model, method):
        answer(model, second, NEW)
        later = answer(model, first, NEW).logits
    with _applied(model, method):
        fresh = answer(model, first, NEW).logits
    if not torch.equal(later, fresh):
        raise Broken("a prompt is answered otherwise after another one")


def bfloat16(method: Method, family: Family) -> None:
    """It runs in half precision: finite logits."""
    model, inputs = tiny(family, torch.bfloat16), family.batch("left-padded", torch.bfloat16)
    with _applied(model, method):
        if not answer(model, inputs, NEW).logits.isfinite().all():
            raise Broken("logits are not finite in bfloat16")


def static_step(method: Method, family: Family) -> None:
    """The step that a CUDA graph captures gives the tokens of `generate`."""
    model, inputs = tiny(family), family.batch("left-padded")
    why = why_unsupported(adapter_for(model))
    if why is not None:
        raise NotApplicable(why)
    with _applied(model, method) as session:
        tokens = answer(model, inputs, NEW).tokens
        static = GraphDecoder(model, session, NEW, len(tokens)).generate(inputs, NEW)
    if not torch.equal(static, tokens):
        raise Broken("the static decode step gives other tokens than generate")


# --- budgets and figures ----------------------------------------------------------------------------------------------


def budget_is_spent(method: Method, family: Family) -> None:
    """No sequence keeps more image tokens than its budget, of however many images; in the decoder exactly as many."""
    stages = [stage for stage in method.stages(_depth(family)) if not isinstance(stage.keep, str)]
    if not stages or method.takes("recycle"):
        raise NotApplicable("it merges tokens" if stages else "how many tokens stay is its own rule")
    for name in (name for name in BATCHES if name in family.batches):
        with _applied(tiny(family), method) as session:
            answer(tiny(family), family.batch(name), 1)
            _check_budget(session, stages[-1], name)


def _check_budget(session: Session, stage: Stage, batch: str) -> None:
    images = (session.prompt.images_on_host.amax(1) + 1).tolist()
    for row, (stats, count) in enumerate(zip(session.stats, images, strict=True)):
        if not count:
            continue
        allowed = max(count, budget(stage.keep, stats.image_tokens))  # type: ignore[arg-type]
        if stats.image_tokens_kept > allowed or (stage.after and stats.image_tokens_kept < allowed):
            raise Broken(
                f"row {row} of the batch {batch!r} keeps {stats.image_tokens_kept} of {stats.image_tokens} image "
                f"tokens; its budget is {allowed}"
            )


def schedule_is_observed(method: Method, family: Family) -> None:
    """What each layer sees, and what its cache holds, are those that are counted beforehand from the method."""
    model, inputs = tiny(family), family.batch("one")
    adapter = adapter_for(model)
    with _applied(model, method) as session:
        cache = answer(model, inputs, 1).cache
        [row] = session.stats
        kept = [int(s.kept.counts[0, 0]) for s in session.prompt.segments if s.stage is not None]
        text = row.prompt_tokens - row.image_tokens
    counted = Schedule.of(
        method, len(row.neurons_kept), adapter.shape, row.image_tokens, text, [count - text for count in kept]
    )
    widths = [layer.keys.shape[2] for layer in cache.layers]
    own = [number for number, layer in enumerate(adapter.layers) if adapter.caches_text(layer)]
    pairs = {
        "tokens of its layers": (counted.tokens, row.tokens_per_layer),
        "cached tokens": (counted.cached, row.cached_per_layer),
        "columns of the cache": ([counted.cached[n] for n in own], [widths[n] for n in own]),
        "neurons": (counted.neurons, row.neurons_kept),
        "bytes of FFNs for a token": ([_ffn_bytes(counted, adapter)], [row.ffn_bytes_per_token]),
    }
    for name, (expected, found) in pairs.items():
        if list(expected) != list(found):
            raise Broken(f"{name}: {list(expected)} are counted beforehand, {list(found)} were there")


def _ffn_bytes(counted: Schedule, adapter: Adapter) -> int:
    read = sum(reads.ffn(adapter.shape) + reads.extra for reads in counted.reads)
    return adapter.model.dtype.itemsize * read


# --- the model afterwards ---------------------------------------------------------------------------------------------


def only_what_is_declared_is_hooked(method: Method, family: Family) -> None:
    """A method without stages leaves the layers alone, one without neurons the FFNs, one without inputs of Linears the
    attention, and none adds hooks of its own."""
    model, decoder = tiny(family), adapter_for(tiny(family)).decoder
    answer(model, family.batch("one"), 1)
    before = _hooked(model)
    with _applied(model, method):
        inside = _hooked(model) - before
    layers = {name for name, module in decoder.named_modules() if module in set(adapter_for(model).layers)}
    touched = {name for name in inside if any(name.endswith(layer) for layer in layers)}
    if touched and not (method.prunes_tokens or method.takes("edit_cache")):
        raise Broken(f"{len(touched)} decoder layers are hooked by a method that has no stages")
    swapped = [name for name in inside if name.endswith(".mlp.forward")]
    if swapped and not method.prunes_neurons:
        raise Broken(f"{len(swapped)} FFNs are replaced by a method that prunes no neurons")
    projections = [name for name in inside if name.endswith(tuple(f".{one}.forward" for one in ATTENTION))]
    if projections and not method.takes("linear"):
        raise Broken(f"{len(projections)} projections of attention are replaced by a method that prunes no inputs")


def restored(method: Method, family: Family) -> None:
    """After the block every weight, hook, attribute and piece of memory is what it was, and so is the answer."""
    model, inputs = tiny(family), family.batch("one")
    answers = answer(model, inputs, 2).logits  # first, for transformers leaves hooks of its own at a model's first call
    before, hooked = _state(model), _hooked(model)
    with _applied(model, method):
        answer(model, inputs, NEW)
    if more := _hooked(model) - hooked:
        raise Broken(f"hooks or attributes are left behind on {', '.join(sorted(more)[:3])}")
    after = _state(model)
    wrong = [
        name for name, (place, value) in before.items() if after[name][0] != place or not value.equal(after[name][1])
    ]
    if wrong:
        raise Broken(f"weights are not what or where they were: {', '.join(wrong[:3])}")
    if not torch.equal(answer(model, inputs, 2).logits, answers):
        raise Broken("the dense model answers otherwise after the block")


def _state(model: Any) -> dict[str, tuple[tuple[Any, ...], torch.Tensor]]:
    """Where each weight lies, and a copy of it."""
    return {
        name: ((w.data_ptr(), w.stride(), w.is_inference(), w.requires_grad), w.detach().clone())
        for name, w in [*model.named_parameters(), *model.named_buffers()]
    }


def _hooked(model: Any) -> Counter[str]:
    """How many hooks each module has, and which methods single modules have of their own."""
    found: Counter[str] = Counter()
    for name, module in model.named_modules():
        found[name] += len(module._forward_hooks) + len(module._forward_pre_hooks)
        found.update(f"{name}.{key}" for key in ("forward", "generate") if key in module.__dict__)
    return +found


def _depth(family: Family) -> int:
    return len(adapter_for(tiny(family)).layers)


Ask = Callable[[Method, Family], float | None]
INVARIANTS: dict[str, Ask] = {
    "dropped equals hidden": dropped_equals_hidden,
    "everything kept is dense": everything_kept_is_dense,
    "a row alone as in a batch": a_row_alone_as_in_a_batch,
    "prompt after prompt": prompt_after_prompt,
    "beams": beams,
    "layers differ": layers_differ,
    "second turn": second_turn,
    "static step": static_step,
    "bfloat16": bfloat16,
    "budget is spent": budget_is_spent,
    "schedule is observed": schedule_is_observed,
    "only the declared hooked": only_what_is_declared_is_hooked,
    "restored": restored,
}
