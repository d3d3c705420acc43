"""What pruning one layer costs, against answers that are forced token by token, one prompt at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from tiny import LAYERS, batch, make_inputs, tiny_llava
from transformers import LogitsProcessor, LogitsProcessorList

import coremat
from coremat.errors import ConfigError, DataError, UnsupportedError
from coremat.methods.base import Method
from coremat.methods.layer_shares import LayerShares
from coremat.methods.registry import parse, with_options
from coremat.runtime.calibration import calibrate
from coremat.runtime.layer_costs import check_grid, divergence, layer_costs
from coremat.testing.families import FAMILIES

PROMPTS = [[1, 30, "image", 31, 32], [1, 33, "image", 36], [1, 40, 41, 42]]
GRID, NEW = (0.25, 0.6), 18


@dataclass(frozen=True)
class Only(Method):
    """A method in one layer alone, by what the session asks of each layer; the others keep everything."""

    method: LayerShares
    layer: int
    share: float

    def __post_init__(self) -> None:
        pass

    def takes(self, slot: str) -> bool:
        return slot in ("neurons", "decode_ffn", "linear") and self.method.takes(slot)

    def setup(self, model):
        return self.method.setup(model)

    def of_layer(self, number: int, layers: int) -> Method:
        if number == self.layer:
            return self.method.at_share(Fraction(repr(self.share)))
        return with_options(self.method, **dict.fromkeys(self.method.share_options, 1.0))


class Forced(LogitsProcessor):
    def __init__(self, answer: torch.Tensor) -> None:
        self.answer = iter(answer.tolist())

    def __call__(self, ids, scores):
        forced = torch.full_like(scores, -torch.inf)
        forced[:, next(self.answer)] = 0
        return forced


def logits_of(model, inputs: Mapping, answer: torch.Tensor) -> torch.Tensor:
    """Of every token behind the first, which comes from the prompt: float64 [t - 1, V]."""
    forced = LogitsProcessorList([Forced(answer)])
    out = model.generate(
        **inputs,
        max_new_tokens=len(answer),
        logits_processor=forced,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.cat(out.logits[1:]).double()


def looped(model, method: LayerShares, layer: int, share: float) -> float:
    total, count = 0.0, 0
    for prompt in PROMPTS:
        inputs = make_inputs(prompt)
        answer = model.generate(**inputs, do_sample=False, max_new_tokens=NEW)[0, inputs["input_ids"].shape[1] :]
        dense = logits_of(model, inputs, answer)
        with coremat.apply(model, Only(method, layer, share)):
            pruned = logits_of(model, inputs, answer)
        for one, other in zip(dense, pruned, strict=True):
            p, q = one.softmax(0), other.softmax(0)
            total += sum(a * (a / b).log() for a, b in zip(p, q, strict=True)).item()
            count += 1
    return total / count


def ending(model):
    """A model whose first answer ends early."""
    inputs = make_inputs(PROMPTS[0])
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=NEW)[0, inputs["input_ids"].shape[1] :]
    model.generation_config.eos_token_id = int(ids[NEW // 2])
    return model


@pytest.mark.parametrize("spec", ["core-neurons", "oracle-neurons", "two-level", "wina", "teal", "random-neurons"])
def test_a_step_of_a_whole_answer_costs_what_single_steps_do(spec: str, tmp_path: Path) -> None:
    model, method = ending(tiny_llava()), parse(spec)
    if method.takes("calibrate"):
        calibrate(model, method, [make_inputs(*PROMPTS), batch("one")], NEW).write(tmp_path / spec)
        method = with_options(method, calibration=str(tmp_path / spec))
    found = layer_costs(model, method, [make_inputs(*PROMPTS[:2]), make_inputs(PROMPTS[2])], GRID, NEW)
    for layer, number in ((0, 0), (3, 1)):
        expected = looped(model, method, layer, GRID[number])
        assert expected > 1e-6
        assert found.tensors["costs"][layer, number].item() == pytest.approx(expected, rel=5e-3, abs=1e-9)
    assert found.tensors["grid"].tolist() == [*GRID, *([1.0] if spec == "two-level" else [])]
    assert found.about["method"] == f"the layers of {spec}"
    assert NEW < found.about["tokens"] < 3 * (NEW - 1)


def test_image_tokens_stay_and_a_join_is_its_neurons() -> None:
    prompts = [make_inputs(*PROMPTS)]
    alone = layer_costs(tiny_llava(), parse("core-neurons"), prompts, GRID, NEW).tensors["costs"]
    for spec in ("fastv:tokens=4+core-neurons", "corematching:tokens=4"):
        assert torch.equal(layer_costs(tiny_llava(), parse(spec), prompts, GRID, NEW).tensors["costs"], alone)
    assert (alone > 0).all()
    assert (alone[:, 0] > alone[:, 1]).float().mean() > 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_measured_or_refused_in_one_sentence(family: str) -> None:
    own = FAMILIES[family]
    prompts = [own.batch("left-padded"), own.batch("one")]
    found = layer_costs(own.model(), parse("energy-neurons"), prompts, (0.25,), NEW)
    assert (found.tensors["costs"] > 0).all()


def test_the_model_is_left_dense() -> None:
    model, inputs = tiny_llava(), batch("one")
    before = model.generate(**inputs, do_sample=False, max_new_tokens=NEW)
    layer_costs(model, parse("core-neurons"), [make_inputs(*PROMPTS)], GRID, NEW)
    assert torch.equal(model.generate(**inputs, do_sample=False, max_new_tokens=NEW), before)


def test_divergence_is_that_of_kullback_and_leibler() -> None:
    random = torch.Generator().manual_seed(0)
    one, other = (4 * torch.randn(5, 9, generator=random, dtype=torch.float64) for _ in range(2))
    p, q = one.softmax(-1), other.softmax(-1)
    looped = sum(a * (a / b).log() for a, b in zip(p.flatten(), q.flatten(), strict=True))
    assert divergence(p, torch.special.entr(p).sum(-1), other).item() == pytest.approx(looped.item(), rel=1e-12)
    assert divergence(p, torch.special.entr(p).sum(-1), one).item() == pytest.approx(0, abs=1e-12)


def test_bad_input_is_one_sentence() -> None:
    model, prompts = tiny_llava(), [make_inputs(*PROMPTS)]
    for spec in ("fastv", "powerinfer", "fastv+powerinfer"):
        with pytest.raises(ConfigError, match="has no layer_shares; accepted"):
            layer_costs(model, parse(spec), prompts)
    with pytest.raises(UnsupportedError, match="cats needs a calibration"):
        layer_costs(model, parse("cats"), prompts)
    with pytest.raises(DataError, match="1 prompts gave answers of 3 tokens to compare; accepted: at least 32"):
        layer_costs(model, parse("core-neurons"), [batch("one")], GRID, 4)
    with coremat.apply(model, "core-neurons"), pytest.raises(ConfigError, match="already inside"):
        layer_costs(model, parse("core-neurons"), prompts)
    for grid in ((), (0.4, 0.2), (0.2, 0.2), (0.0, 0.5), (0.5, 1.0)):
        with pytest.raises(ConfigError, match="accepted: above 0, ascending, below 1"):
            check_grid(grid)
    mllama = FAMILIES["mllama"]
    text = [
        {
            name: value
            for name, value in mllama.batch("left-padded").items()
            if "cross" not in name and "pixel" not in name and "aspect" not in name
        }
    ]
    with pytest.raises(DataError, match=r"layer \d was skipped; accepted: prompts that every layer reads"):
        layer_costs(mllama.model(), parse("core-neurons"), text, GRID, NEW)


def test_a_step_of_progress_for_each_layer_of_each_batch() -> None:
    calls: list[int] = []
    prompts = [make_inputs(*PROMPTS), batch("one")]
    layer_costs(
        tiny_llava(),
        with_options(parse("griffin"), beta=0.3),
        prompts,
        (0.5,),
        NEW,
        on_layer=lambda: calls.append(1),
    )
    assert len(calls) == 2 * LAYERS
