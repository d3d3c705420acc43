"""Methods joined by +: each part has the state that its own `setup` returned."""

from dataclasses import dataclass

import pytest
import torch

import coremat
from coremat.ffn.gathered import GatheredFFN
from coremat.methods.base import Method, Reduction, Stage
from coremat.methods.joined import Joined
from coremat.testing.answers import answer
from coremat.testing.families import FAMILIES
from coremat.testing.invariants import tiny

FAMILY = FAMILIES["llava"]
NEURONS = 8


@dataclass(frozen=True)
class Notes(Method):
    """What its slots saw, by the slot."""

    place: int = 1

    def setup(self, model):
        return []

    def stages(self, layers):
        return (Stage(self.place, 4),)


class InLayer(Notes):
    def score(self, stage, layer):
        layer.state.append("score")
        return torch.zeros(layer.valid.shape)


class BeforeDecoder(Notes):
    def before_decoder(self, image, keep):
        image.state.append("before_decoder")
        return Reduction(torch.arange(len(image.features)) < keep)


@dataclass(frozen=True)
class Neurons(Method):
    def setup(self, model):
        return []

    def neuron_count(self, size):
        return NEURONS

    def neurons(self, layer):
        layer.state.append(layer.number)
        return torch.arange(NEURONS)[None]

    def decode_ffn(self, number, mlp, state):
        state.append(f"ffn {number}")
        return GatheredFFN(mlp)


@dataclass(frozen=True)
class CalibratedTokens(InLayer):
    def calibrate(self, layers):
        return {}


def test_either_part_may_take_a_calibration():
    assert Joined(CalibratedTokens(1), Neurons()).takes("calibrate")
    assert not Joined(InLayer(1), Neurons()).takes("calibrate")


@pytest.mark.parametrize(("tokens", "slot"), [(InLayer(1), "score"), (BeforeDecoder(0), "before_decoder")])
def test_each_part_sees_the_state_that_it_made(tokens, slot, monkeypatch):
    made = []
    monkeypatch.setattr(Notes, "setup", lambda self, model: made.append([]) or made[-1])
    monkeypatch.setattr(Neurons, "setup", lambda self, model: made.append([]) or made[-1])
    model = tiny(FAMILY)
    with coremat.apply(model, Joined(tokens, Neurons())):
        answer(model, FAMILY.batch("one"), 2)
    layers = len(model.get_decoder().layers)
    assert made == [[slot], [*(f"ffn {n}" for n in range(layers)), *range(layers)]]
