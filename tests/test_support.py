"""Which methods a model gives: asked of shells without weights, and put into a few words."""

import pytest
from tiny import tiny_llava

from coremat.config import SparsityConfig
from coremat.errors import ConfigError, UnsupportedError
from coremat.methods import METHODS
from coremat.profile.shipped_config import shipped_config
from coremat.profile.support import given_and_skipped, hindrance, method_support, summary


def test_llava_gives_every_method():
    support = method_support(shipped_config("llava-1.5-7b"))
    assert list(support) == list(METHODS)
    assert summary(support) == "all"


def test_cross_attention_leaves_the_neurons():
    support = method_support(shipped_config("llama-3.2-11b-vision"))
    assert summary(support) == "neurons only"
    assert "cross-attention" in str(support["corematching"])
    assert support["dense"] is support["core-neurons"] is None


def test_a_tower_without_class_token_lacks_what_needs_one():
    support = method_support(shipped_config("gemma-3"))
    assert summary(support) == "all but prumerge, prumerge+, visionzip"


def test_the_needed_method_and_bad_values_are_not_skipped():
    model = tiny_llava()
    too_deep = SparsityConfig(prune_layer=6)
    with pytest.raises(ConfigError, match="prune_layer is 6"):
        given_and_skipped(model, {"dense": SparsityConfig(), "deep": too_deep}, "dense")
    assert "prune_layer is 6" in str(hindrance(model, too_deep))
    model.config.model_type = "unheard-of"
    with pytest.raises(UnsupportedError, match="unheard-of"):
        given_and_skipped(model, {"dense": SparsityConfig()}, "dense")
