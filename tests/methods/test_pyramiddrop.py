"""PyramidDrop's stages, and the attention of the layer to come against the one that the dense model has there."""

import pytest
import torch
from tiny import LAYERS, batch, tiny_llava

import coremat
from coremat.errors import ConfigError
from coremat.methods.pyramiddrop import PyramidDrop, even
from coremat.testing.families import FAMILIES


@pytest.mark.parametrize(
    ("layers", "places"), [(32, [8, 16, 24]), (40, [10, 20, 30]), (28, [7, 14, 21]), (6, [1, 3, 4]), (3, [1, 2])]
)
def test_stages_stand_at_quarters_of_the_depth(layers, places):
    assert even(layers, 3) == places
    assert [stage.after for stage in PyramidDrop().stages(layers)] == places


def test_ratios_are_of_the_whole_prompt_and_layers_can_be_given():
    method = PyramidDrop(layers=(2, 5), ratios=(0.6, 0.2))
    assert [(stage.after, stage.keep) for stage in method.stages(32)] == [(2, 0.6), (5, 0.2)]
    with pytest.raises(ConfigError, match=r"layers is \(2,\) beside 3 ratios; accepted: as many layers as ratios"):
        PyramidDrop(layers=(2,), ratios=(0.5, 0.25, 0.125))


@pytest.mark.parametrize(
    ("options", "keeps"),
    [
        ({}, [0.5, 0.25, 0.125]),
        ({"tokens": 64}, [256, 128, 64]),
        ({"tokens": 0.3}, [1.0, 0.6, 0.3]),
        ({"tokens": 10, "layers": (2, 5)}, [20, 10]),
        ({"tokens": 10, "ratios": (0.6, 0.2)}, [0.6, 0.2]),
    ],
)
def test_each_stage_leaves_twice_as_many_as_the_next(options, keeps):
    assert [stage.keep for stage in PyramidDrop(**options).stages(32)] == keeps


class Recorded(PyramidDrop):
    """Keeps the scores that it gives."""

    def score(self, stage, layer):
        scores.append(super().score(stage, layer))
        return scores[-1]


scores: list[torch.Tensor] = []


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "llava_next"])
def test_the_score_is_the_attention_that_the_layer_has(name):
    """At the first stage nothing has been dropped, so that the dense model's own attention is the reference."""
    model, inputs = FAMILIES[name].model(attention="eager"), FAMILIES[name].batch("left-padded")
    scores.clear()
    with torch.no_grad():
        dense = model(**inputs, output_attentions=True).attentions[3][:, :, -1].mean(1)
        with coremat.apply(model, Recorded(layers=(3,), ratios=(0.5,))):
            model(**inputs)
    assert torch.allclose(scores[0], dense, atol=1e-6)


def test_the_stages_keep_half_a_quarter_an_eighth():
    model = tiny_llava()
    with coremat.apply(model, PyramidDrop()) as session, torch.no_grad():
        model(**batch("one"))
    [row] = session.stats
    text = row.prompt_tokens - row.image_tokens
    kept = [tokens - text for tokens in row.tokens_per_layer]
    assert kept == [16, 8, 8, 4, 2, 2]
    assert row.cached_per_layer == row.tokens_per_layer  # the caches of earlier layers stay as they were
    assert len(kept) == LAYERS
