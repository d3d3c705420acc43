"""Every registered method on every family, through what `coremat check-method` asks; and wrong methods, found out."""

import re
from dataclasses import dataclass

import pytest
import torch

from coremat.errors import ConfigError, UnknownNameError
from coremat.ffn.gathered import GatheredFFN
from coremat.methods import registry
from coremat.methods.base import Method, Reduction, Stage
from coremat.methods.options import Budget
from coremat.testing import check_method
from coremat.testing.families import FAMILIES

METHODS = (
    *registry.modules(),
    "fastv:tokens=5+core-neurons",
    "core-tokens:tokens=0.4:positions=auto:earlier_cache=full",
)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_holds_on_every_family(errors, method, family):
    findings = list(check_method(method, [family]))
    for finding in findings:
        if finding.error is not None:
            errors[f"{family}, {method}, {finding.invariant}"] = finding.error
    assert not [str(finding) for finding in findings if finding.ok is False]
    assert any(finding.ok for finding in findings) or findings[0].invariant == "all"


# --- wrong methods: each is found out, in one sentence ------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class InLayer(Method):
    tokens: Budget = 5

    def stages(self, layers):
        return (Stage(2, self.tokens),)

    def score(self, stage, layer):
        return layer.attention("last").mean((1, 2))


@dataclass(frozen=True, kw_only=True)
class KeepsADroppedToken(InLayer):
    """Inside a slot that only sees, it puts a dropped token's values where a kept one's are."""

    tokens: Budget = 5

    def stages(self, layers):
        return (Stage(2, self.tokens, earlier_cache="full"),)

    def score(self, stage, layer):
        layer.values[:, :, -2] = layer.values[:, :, 3]
        return super().score(stage, layer)


@dataclass(frozen=True, kw_only=True)
class SpendsOverBudget(Method):
    tokens: Budget = 5

    def stages(self, layers):
        return (Stage(0, self.tokens),)

    def before_decoder(self, image, keep):
        places = torch.zeros(len(image.features), dtype=torch.bool)
        places[: keep + 1] = True
        return Reduction(places)


@dataclass(frozen=True, kw_only=True)
class LeavesAHook(Method):
    def neuron_count(self, size):
        return size

    def decode_ffn(self, number, mlp, state):
        mlp.down_proj.register_forward_pre_hook(_hook)
        return GatheredFFN(mlp)

    def neurons(self, layer):
        rows, _, size = layer.activations.shape
        return torch.arange(size).expand(rows, -1)


def _hook(module, args):
    return None


@dataclass(frozen=True, kw_only=True)
class LooksAtItsNeighbours(InLayer):
    def score(self, stage, layer):
        weights = layer.attention("last").mean((1, 2))
        return weights - weights.mean(0) if len(weights) > 1 else weights


@dataclass(frozen=True, kw_only=True)
class Remembers(InLayer):
    """Scores that depend on how often it was asked."""

    def score(self, stage, layer):
        asked.append(0)
        order = torch.arange(layer.valid.shape[1]).expand_as(layer.valid)
        return order if len(asked) % 2 else -order


asked: list[int] = []


@dataclass(frozen=True, kw_only=True)
class NotANumber(InLayer):
    def score(self, stage, layer):
        return torch.full(layer.valid.shape, torch.nan)


@dataclass(frozen=True, kw_only=True)
class WrongShape(InLayer):
    def score(self, stage, layer):
        return layer.attention("last")


@dataclass(frozen=True, kw_only=True)
class TooDeep(InLayer):
    def stages(self, layers):
        return (Stage(layers, self.tokens),)


@dataclass(frozen=True, kw_only=True)
class OutOfOrder(InLayer):
    def stages(self, layers):
        return (Stage(3, 0.5), Stage(2, 0.25))


@pytest.mark.parametrize(
    ("method", "invariant", "said"),
    [
        (KeepsADroppedToken(), "dropped equals hidden", "logits differ by .* in which the dropped tokens are hidden"),
        (SpendsOverBudget(), "budget is spent", "keeps 6 tokens of an image; accepted: 1 to 5, its budget"),
        (LeavesAHook(), "restored", "hooks or attributes are left behind on .*down_proj"),
        (LooksAtItsNeighbours(), "a row alone as in a batch", r"row \d of a batch keeps .*, and alone"),
        (Remembers(), "prompt after prompt", "answered otherwise after another one"),
        (NotANumber(), "dropped equals hidden", "scores of 16 image tokens are NaN or infinite"),
        (
            WrongShape(),
            "dropped equals hidden",
            r"WrongShape gave scores \(1, 4, 1, 20\) .*; accepted: a tensor \(1, 20\)",
        ),
        (TooDeep(), "all", "TooDeep prunes after 6 decoder layers; accepted for this model of 6 layers: 1 to 5"),
        (OutOfOrder(), "all", r"OutOfOrder has stages after layers \[3, 2\]; accepted: in ascending order"),
    ],
)
def test_a_wrong_method_is_found_out(method, invariant, said):
    failed = {f.invariant: f.detail for f in check_method(method, ["llava"]) if f.ok is False}
    assert invariant in failed
    assert re.search(said, failed[invariant])
    assert "\n" not in failed[invariant]


def test_an_unknown_family_is_one_sentence():
    with pytest.raises(UnknownNameError, match="unknown family 'lava': did you mean 'llava'"):
        list(check_method("dense", ["lava"]))


def test_a_class_in_place_of_a_method_is_one_sentence():
    with pytest.raises(ConfigError, match=r"the class InLayer; accepted: .*InLayer\(\)"):
        list(check_method(InLayer, ["llava"]))
