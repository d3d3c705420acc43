"""Budgets that differ from layer to layer, for every method of neurons: what each layer gets, and what is refused."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import LAYERS, NEURONS, SHAPE, batch, tiny_llava

import coremat
from coremat.cost.schedule import Schedule
from coremat.errors import ConfigError
from coremat.methods import registry
from coremat.methods.calibration_file import Calibration
from coremat.methods.corematching.core_neurons import CoreNeurons
from coremat.methods.layer_shares import EVEN, FIRST_DENSE, LayerShares, shares_of
from coremat.methods.options import Share
from coremat.methods.registry import parse, with_options
from coremat.methods.two_level import TwoLevel
from coremat.runtime.layer_costs import layer_costs

WITH_SHARES = [name for name in registry.modules() if issubclass(registry.method_class(name), LayerShares)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The costs of core-neurons on the tiny LLaVA."""
    path = tmp_path_factory.mktemp("costs") / "core.safetensors"
    prompts = [batch("left-padded"), batch("same-length")]
    layer_costs(tiny_llava(), CoreNeurons(), prompts, (0.25, 0.5), new_tokens=12).write(path)
    return path


def test_every_method_that_prunes_neurons_has_the_option_but_one_that_only_takes_time() -> None:
    pruning = {name for name in registry.modules() if parse(name).prunes_neurons}
    assert pruning - set(WITH_SHARES) == {"powerinfer"}
    assert set(WITH_SHARES) <= pruning


@pytest.mark.parametrize("name", WITH_SHARES)
def test_even_is_the_method_itself_and_unequal_shares_have_its_sum(name: str) -> None:
    method = with_options(parse(name), layer_shares=EVEN)
    assert all(own is method for own in method.by_layer(LAYERS))
    layers = with_options(method, layer_shares=FIRST_DENSE).by_layer(LAYERS)
    for option in method.share_options:
        values = [getattr(own, option) for own in layers]
        assert sum(values) == pytest.approx(LAYERS * getattr(method, option), abs=1e-12)
        assert values[0] > values[1]
        assert len(set(values[1:])) == 1
    assert getattr(layers[0], method.share_options[0]) == 1
    others = {with_options(own, **dict.fromkeys(reversed(method.share_options), 0.1)) for own in layers}
    assert others == {with_options(method, **dict.fromkeys(reversed(method.share_options), 0.1))}


def test_both_levels_change_in_proportion() -> None:
    first, second, *_ = TwoLevel(candidates=0.6, beta=0.3, layer_shares=FIRST_DENSE).by_layer(5)
    assert (first.candidates, first.beta) == (1, 0.5)
    assert (second.candidates, second.beta) == (0.5, 0.25)
    equal = TwoLevel(candidates=0.3, beta=0.3, layer_shares=FIRST_DENSE).by_layer(7)
    assert all(own.beta == own.candidates for own in equal)


def test_a_join_has_the_budgets_of_its_neurons() -> None:
    method = parse("fastv:tokens=5+core-neurons:beta=0.3:layer_shares=first-dense")
    assert [own.neuron_count(100) for own in method.by_layer(8)] == [100] + [20] * 7
    assert method.neuron_count(100) == 30


@pytest.mark.parametrize("spec", ["core-neurons:beta=0.3", "oracle-neurons:beta=0.3", "two-level"])
def test_counts_and_figures_are_those_of_each_layer(spec: str) -> None:
    method = parse(f"{spec}:layer_shares=first-dense")
    counts = [own.neuron_count(NEURONS) for own in method.by_layer(LAYERS)]
    assert counts[0] == NEURONS > counts[1] == counts[-1]
    schedule = Schedule.of(method, LAYERS, SHAPE, 16, 4)
    assert list(schedule.neurons) == counts
    even = Schedule.of(parse(spec), LAYERS, SHAPE, 16, 4)
    read = [sum(reads.ffn(SHAPE) for reads in one.reads) for one in (schedule, even)]
    assert even.reads[0] != schedule.reads[0] != schedule.reads[1]
    assert read[0] == pytest.approx(read[1], rel=0.05)
    model = tiny_llava()
    with coremat.apply(model, method) as session:
        model.generate(**batch("one"), max_new_tokens=3, do_sample=False)
        [row] = session.stats
    assert list(row.neurons_kept) == counts
    assert row.ffn_bytes_per_token == 4 * read[0]


@dataclass(frozen=True, kw_only=True)
class Lowest(LayerShares):
    """A stranger's method: one base class is all that it takes."""

    beta: Share = 0.5

    def neurons(self, layer):
        rows, _, size = layer.activations.shape
        return torch.arange(self.neuron_count(size)).expand(rows, -1)

    def neuron_count(self, size):
        return int(self.beta * size)


def test_a_method_of_ones_own_has_it_by_its_base_class() -> None:
    model = tiny_llava()
    with coremat.apply(model, Lowest(layer_shares=FIRST_DENSE)) as session:
        model.generate(**batch("one"), max_new_tokens=3, do_sample=False)
        assert session.stats[0].neurons_kept == (NEURONS, *[int(0.4 * NEURONS)] * (LAYERS - 1))


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_divides_any_mean(file: Path) -> None:
    costs = Calibration.read(file).tensors["costs"]
    assert costs.shape == (LAYERS, 2)
    for beta in (0.1, 0.3, 0.7, 1.0):
        method = CoreNeurons(beta=beta, layer_shares=str(file))
        found = [own.beta for own in method.by_layer(LAYERS)]
        assert sum(found) == pytest.approx(LAYERS * beta, abs=1e-12)
        assert len(set(found)) > 1 or beta == 1
        assert found == [float(share) for share in shares_of(method, LAYERS)]
    model = tiny_llava()
    with coremat.apply(model, CoreNeurons(layer_shares=str(file))) as session:
        model.generate(**batch("one"), max_new_tokens=3, do_sample=False)
        assert len(set(session.stats[0].neurons_kept)) > 1


def test_a_file_goes_by_its_name_and_content(file: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copy(file, tmp_path / file.name))
    here, there = (CoreNeurons(layer_shares=str(path)).identity() for path in (file, moved))
    assert here == there
    assert here["options"]["layer_shares"] == "core.safetensors"
    assert len(here["layer_shares"]["sha256"]) == 64
    found = Calibration.read(moved)
    turned = {**found.tensors, "costs": found.tensors["costs"].flip(0)}
    Calibration(turned, {**found.about, "command": "another"}).write(moved)
    assert CoreNeurons(layer_shares=str(moved)).identity() != here
    before, after = (CoreNeurons(layer_shares=str(path)).by_layer(LAYERS) for path in (file, moved))
    assert [own.beta for own in before] == [own.beta for own in after][::-1]


def refused(method: LayerShares, model: Any = None) -> str:
    with pytest.raises(ConfigError) as raised, coremat.apply(model or tiny_llava(), method):
        pass
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_is_no_division_is_refused(file: Path, tmp_path: Path) -> None:
    said = refused(CoreNeurons(layer_shares="first_dense"))
    assert (
        said
        == "there is no file 'first_dense'; accepted: even, first-dense, a file of coremat calibrate --layer-shares."
    )
    assert "0.1 in the mean of 6 layers leaves nothing" in refused(CoreNeurons(beta=0.1, layer_shares=FIRST_DENSE))
    other = tiny_llava()
    with torch.no_grad():
        other.get_decoder().layers[3].mlp.up_proj.weight += 0.5
    assert "was made on other weights" in refused(CoreNeurons(layer_shares=str(file)), other)
    assert "of the layers of core-neurons; accepted: one of the layers of griffin" in refused(
        parse(f"griffin:layer_shares={file}")
    )
    assert "accepted: one of cats" in refused(parse(f"cats:calibration={file}"))
    broken = tmp_path / "broken"
    broken.write_bytes(file.read_bytes()[:-1] + b"!")
    assert "is broken" in refused(CoreNeurons(layer_shares=str(broken)))
    found = Calibration.read(file)
    Calibration({"thresholds": found.tensors["costs"]}, {**found.about, "method": "cats"}).write(broken)
    assert "is a calibration of cats; accepted: even, first-dense" in refused(CoreNeurons(layer_shares=str(broken)))
    with pytest.raises(ConfigError, match="was made for 6 layers, and this model has 7"):
        CoreNeurons(layer_shares=str(file)).by_layer(7)
    with pytest.raises(ConfigError, match="layer_shares is 1; accepted: even, first-dense"):
        CoreNeurons(layer_shares=1)
