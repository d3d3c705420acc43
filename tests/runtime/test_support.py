"""Which methods a model can run: asked of shells without weights, and put into a few words."""

import pytest
from tiny import tiny_llava

from coremat.errors import ConfigError, UnsupportedError
from coremat.methods.registry import modules, parse
from coremat.models.architecture import bare_model, shipped_config
from coremat.models.known import KNOWN_MODELS
from coremat.runtime.support import TIMING_ONLY, given_and_skipped, method_support, summary, why_unsupported


def test_llava_gives_every_method():
    support = method_support(shipped_config("llava-1.5-7b"))
    assert list(support) == list(modules())
    assert summary(support) == "all"


def test_cross_attention_leaves_the_neurons():
    support = method_support(shipped_config("llama-3.2-11b-vision"))
    assert summary(support) == "neurons only"
    assert "cross-attention" in str(support["corematching"])
    assert support["dense"] is support["core-neurons"] is None


def test_a_tower_without_class_token_lacks_what_needs_one():
    support = method_support(shipped_config("gemma-3"))
    lacking = [name for name in modules() if "class token" in parse(name).needs]
    assert {"prumerge", "visionzip"} <= set(lacking)
    assert summary(support) == "all but methods that need a class token"
    odd = support | {"divprune": "not today", "dense": None}
    assert summary(odd) == f"all but {', '.join(name for name in support if name in lacking or name == 'divprune')}"


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_what_is_listed_is_what_a_model_gives(name: str) -> None:
    """After a change on purpose: python -m coremat.runtime.support"""
    assert KNOWN_MODELS[name].methods == summary(method_support(shipped_config(name)))


def test_what_cannot_be_run_is_skipped_with_its_reason():
    given, skipped = given_and_skipped(shell("gemma-3"), {spec: parse(spec) for spec in ("dense", "visionzip")})
    assert list(given) == ["dense"]
    assert list(skipped) == ["visionzip"]
    assert "class token" in skipped["visionzip"]


def test_methods_for_timing_are_given_where_timing_is_asked():
    methods = {"powerinfer": parse("powerinfer"), "dense": parse("dense")}
    assert given_and_skipped(tiny_llava(), methods) == ({"dense": methods["dense"]}, {"powerinfer": TIMING_ONLY})
    assert given_and_skipped(tiny_llava(), methods, timing=True) == (methods, {})


def test_bad_values_are_not_skipped():
    too_deep = parse("corematching:prune_layer=6")
    with pytest.raises(ConfigError, match="prunes after 6 decoder layers"):
        given_and_skipped(tiny_llava(), {"dense": parse("dense"), "deep": too_deep})
    assert "prunes after 6 decoder layers" in str(why_unsupported(tiny_llava(), too_deep))
    assert why_unsupported(tiny_llava(), parse("corematching")) is None


def test_nothing_that_can_be_run_is_refused_with_every_reason():
    model = tiny_llava()
    model.config.model_type = "unheard-of"
    with pytest.raises(UnsupportedError, match=r"dense: .*unheard-of.*; fastv: "):
        given_and_skipped(model, {"dense": parse("dense"), "fastv": parse("fastv")})


def shell(name: str):
    return bare_model(shipped_config(name), "meta")
