"""Methods by what is typed: names, options, joins, classes of one's own, and what cannot be."""

from dataclasses import dataclass

import pytest

from coremat.errors import ConfigError, UnknownNameError
from coremat.methods import registry
from coremat.methods.base import Method, Stage
from coremat.methods.corematching.core_neurons import CoreNeurons
from coremat.methods.corematching.corematching import CoreMatching
from coremat.methods.corematching.random_tokens import RandomTokens
from coremat.methods.dense import Dense
from coremat.methods.fastv import FastV
from coremat.methods.joined import Joined
from coremat.methods.prumerge import PruMerge, PruMergePlus
from coremat.methods.random_neurons import RandomNeurons
from coremat.methods.visionzip import VisionZip


@pytest.mark.parametrize("name", registry.modules())
def test_every_name_is_its_class_with_its_defaults(name):
    method = registry.parse(name)
    assert method.name == name
    assert method == registry.method_class(name)()
    assert method.summary
    assert method.paper or name == "dense"
    assert registry.parse(spec_of(method)) == method


def spec_of(method: Method) -> str:
    """Name and options, typed out in full."""
    own = method.identity()
    return ":".join([own["name"], *(f"{option}={as_typed(value)}" for option, value in own["options"].items())])


def as_typed(value: object) -> str:
    if isinstance(value, tuple):
        return "/".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


@pytest.mark.parametrize(
    ("spec", "method"),
    [
        ("dense", Dense()),
        ("corematching", CoreMatching()),
        (" corematching ", CoreMatching()),
        ("corematching:tokens=64:prune_layer=3", CoreMatching(tokens=64, prune_layer=3)),
        ("corematching:tokens=0.25", CoreMatching(tokens=0.25)),
        ("corematching:tokens=1", CoreMatching(tokens=1)),
        ("corematching:tokens=1.0", CoreMatching(tokens=1.0)),
        ("corematching:tokens=knee", CoreMatching()),
        ("corematching:tokens=all", CoreMatching(tokens="all")),
        ("corematching:prefill_from=2:knee=signed", CoreMatching(prefill_from=2, knee="signed")),
        ("corematching:prefill_from=none", CoreMatching()),
        ("fastv:queries=all:earlier_cache=cut", FastV(queries="all", earlier_cache="cut")),
        ("prumerge+", PruMergePlus()),
        ("prumerge+:tokens=64", PruMergePlus(tokens=64)),
        ("prumerge:fence=2:neighbours=8", PruMerge(fence=2, neighbours=8)),
        ("visionzip:dominant=54:contextual=10", VisionZip(dominant=54, contextual=10)),
        ("visionzip:tower_layer=-1", VisionZip(tower_layer=-1)),
        ("random-tokens:seed=7", RandomTokens(seed=7)),
    ],
)
def test_a_name_and_its_options(spec, method):
    parsed = registry.parse(spec)
    assert parsed == method
    assert type(parsed) is type(method)
    assert parsed.identity() == method.identity()


@pytest.mark.parametrize(
    ("spec", "tokens", "neurons"),
    [
        ("fastv+core-neurons", FastV(), CoreNeurons()),
        ("fastv:tokens=64+core-neurons:beta=0.2", FastV(tokens=64), CoreNeurons(beta=0.2)),
        ("prumerge+core-neurons", PruMerge(), CoreNeurons()),
        ("prumerge++core-neurons", PruMergePlus(), CoreNeurons()),
        ("prumerge+:tokens=8+random-neurons:seed=3", PruMergePlus(tokens=8), RandomNeurons(seed=3)),
    ],
)
def test_two_methods_are_joined(spec, tokens, neurons):
    method = registry.parse(spec)
    assert isinstance(method, Joined)
    assert (method.tokens, method.by_neuron) == (tokens, neurons)
    assert (method.prunes_tokens, method.prunes_neurons) == (True, True)
    assert method.identity() == {
        "name": f"{tokens.name}+{neurons.name}",
        "parts": [tokens.identity(), neurons.identity()],
    }


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("fastv+fastv", r"joins decoder layer \+ decoder layer; accepted: a method that prunes tokens alone"),
        ("core-neurons+fastv", r"joins neurons \+ decoder layer"),
        ("corematching+core-neurons", r"joins decoder layer and neurons \+ neurons"),
        ("dense+core-neurons", r"joins none \+ neurons"),
        ("fastv+core-neurons+random-neurons", r"joins decoder layer \+ neurons \+ neurons"),
        ("visionzip+divprune", r"joins before decoder \+ before decoder"),
    ],
)
def test_what_cannot_be_joined(spec, words):
    with pytest.raises(ConfigError, match=words) as info:
        registry.parse(spec)
    assert repr(spec) in str(info.value)


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("fastvv", UnknownNameError, "unknown method 'fastvv': did you mean 'fastv'"),
        ("", UnknownNameError, "unknown method ''"),
        ("fastv+", UnknownNameError, r"unknown method 'fastv\+'"),
        ("+fastv", UnknownNameError, "unknown method ''"),
        ("fastv:budget=4", UnknownNameError, "unknown option of fastv 'budget'"),
        ("fastv:seed=4", UnknownNameError, "unknown option of fastv 'seed'"),
        ("fastv:tokens", ConfigError, "'fastv:tokens' has 'tokens' where option=value was expected"),
        ("fastv:tokens=", ConfigError, "has 'tokens=' where option=value was expected"),
        ("fastv:", ConfigError, "has '' where option=value was expected"),
        ("fastv:tokens=knee", ConfigError, "tokens is 'knee'; accepted: a count of at least 1, a share"),
        ("fastv:tokens=0", ConfigError, "tokens is 0; accepted"),
        ("fastv:tokens=1.5", ConfigError, "tokens is 1.5; accepted"),
        ("fastv:tokens=nan", ConfigError, "tokens is nan; accepted"),
        ("fastv:prune_layer=2.0", ConfigError, "prune_layer is '2.0'; accepted: a whole number, at least 1"),
        ("fastv:prune_layer=0", ConfigError, "prune_layer is 0; accepted: a whole number, at least 1"),
        ("fastv:queries=some", ConfigError, "queries is 'some'; accepted: last, all"),
        ("corematching:voters=image", ConfigError, "voters is 'image'; accepted: all, text, last"),
        ("corematching:prefill_from=never", ConfigError, "prefill_from is 'never'; accepted: .*, none"),
        ("no.such.module:Class", ConfigError, "there is no module 'no'"),
        ("coremat.methods.fastv:Slow", ConfigError, "has no class 'Slow'; methods in it: FastV"),
        ("coremat.methods.fastv:BLOCK", ConfigError, "BLOCK is no subclass of coremat.methods.base.Method"),
        ("./there_is_none.py:Class", ConfigError, "there is no file 'there_is_none.py'|there is no file"),
    ],
)
def test_what_cannot_be_typed(spec, error, words):
    with pytest.raises(error, match=words) as info:
        registry.parse(spec)
    assert "\n" not in str(info.value)


def test_defaults_go_to_those_who_have_the_option_and_give_way_to_what_is_typed():
    given = {"tokens": 9, "prune_layer": 3, "seed": 5}
    assert registry.parse("fastv", **given) == FastV(tokens=9, prune_layer=3)
    assert registry.parse("fastv:tokens=4", **given) == FastV(tokens=4, prune_layer=3)
    assert registry.parse("dense", **given) == Dense()
    joined = registry.parse("random-tokens:seed=1+random-neurons", **given)
    assert (joined.tokens.seed, joined.tokens.tokens, joined.by_neuron.seed) == (1, 9, 5)


def test_other_values_for_the_options_that_a_method_has():
    method = registry.parse("random-tokens:tokens=4+random-neurons:beta=0.2")
    other = registry.with_options(method, seed=8, tower_layer=3)
    assert (other.tokens.seed, other.by_neuron.seed) == (8, 8)
    assert (other.tokens.tokens, other.by_neuron.beta) == (4, 0.2)
    assert registry.with_options(FastV(), seed=8) == FastV()
    assert registry.with_options(Dense(), seed=8) == Dense()


def test_a_method_or_its_spec_and_nothing_else():
    method = FastV(tokens=5)
    assert registry.method(method) is method
    assert registry.method("fastv:tokens=5") == method
    with pytest.raises(ConfigError, match=r"the method is the class FastV; accepted: .* FastV\(\)\."):
        registry.method(FastV)
    with pytest.raises(ConfigError, match="the method is 3; accepted: a method such as"):
        registry.method(3)


MINE = """
from dataclasses import dataclass
from coremat.methods.base import Method, Stage

@dataclass(frozen=True, kw_only=True)
class ShortKeys(Method):
    tokens: int = 4
    layers: tuple[int, ...] = (8, 16, 24)
    soft: bool = False

    def stages(self, layers):
        return (Stage(1, self.tokens),)

    def score(self, stage, layer):
        return -layer.keys.norm(dim=-1).mean(1)

class Bare(ShortKeys):
    more: int = 3
"""


@pytest.fixture
def mine(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    return file


def test_a_file_of_ones_own_with_lists_and_words(mine):
    method = registry.parse(f"{mine}:ShortKeys:tokens=3:layers=8/16:soft=true")
    assert (method.tokens, method.layers, method.soft) == (3, (8, 16), True)
    identity = method.identity()
    assert identity["name"] == "ShortKeys"
    assert identity["source"]["file"] == "mine.py"
    assert len(identity["source"]["sha256"]) == 64
    joined = registry.parse(f"{mine}:ShortKeys:layers=7+core-neurons")
    assert joined.tokens.layers == (7,)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("layers=8/x", "layers is '8/x'; accepted: one or more, divided by /, each a whole number"),
        ("layers=", "where option=value was expected"),
        ("soft=yes", "soft is 'yes'; accepted: true, false"),
    ],
)
def test_lists_and_words_that_are_none(mine, typed, words):
    with pytest.raises(ConfigError, match=words):
        registry.parse(f"{mine}:ShortKeys:{typed}")


def test_a_class_without_the_decorator_is_refused(mine):
    with pytest.raises(ConfigError, match="Bare is no frozen dataclass; put @dataclass"):
        registry.parse(f"{mine}:Bare")


@pytest.mark.parametrize(
    ("text", "words"), [("1 +", "SyntaxError in line 1"), ("\nraise ValueError('no')", "ValueError in line 2: no")]
)
def test_a_file_that_cannot_be_run(tmp_path, text, words):
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        registry.parse(f"{file}:Any")


def test_an_annotation_that_no_option_can_have():
    @dataclass(frozen=True, kw_only=True)
    class Odd(Method):
        sizes: dict = None

        def stages(self, layers):
            return (Stage(1, 4),)

    with pytest.raises(ConfigError, match="an option is annotated <class 'dict'>; accepted: bool, int, float, str"):
        Odd()


def test_a_file_without_its_class_is_one_sentence(mine):
    with pytest.raises(ConfigError, match=r"mine\.py' names no class of the file; accepted: path\.py:Class"):
        registry.parse(str(mine))


def test_an_option_without_a_default_has_to_be_typed(tmp_path):
    file = tmp_path / "wanting.py"
    file.write_text(MINE.replace("tokens: int = 4", "tokens: int"))
    with pytest.raises(ConfigError, match=r"has no value for tokens; accepted: .*:ShortKeys:tokens=\.\.\."):
        registry.parse(f"{file}:ShortKeys")
    assert registry.parse(f"{file}:ShortKeys:tokens=3").tokens == 3


def test_stages_that_are_none_of_ours(tmp_path):
    file = tmp_path / "none.py"
    file.write_text(MINE.replace("return (Stage(1, self.tokens),)", "return None"))
    with pytest.raises(ConfigError, match="the stages of ShortKeys are None; accepted: a tuple of Stage"):
        registry.parse(f"{file}:ShortKeys").pruning_stages(6)


def test_the_hash_is_of_the_code_that_ran(mine):
    """A file that changes while the program runs is another method from then on."""
    before = registry.parse(f"{mine}:ShortKeys")
    hashed = before.identity()["source"]["sha256"]
    mine.write_text(MINE.replace("tokens: int = 4", "tokens: int = 5"))
    after = registry.parse(f"{mine}:ShortKeys")
    assert (before.tokens, after.tokens) == (4, 5)
    assert before.identity()["source"]["sha256"] == hashed != after.identity()["source"]["sha256"]
