"""Every way of decoding on core neurons gives what the slow reference gives, for every config, prompt after prompt."""

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import configs
import pytest
import torch
from equivalence import compare
from tiny import answer, batch, chosen

import coremat
from coremat.decoding.graph_decoder import GraphDecoder
from coremat.errors import ConfigError, UnsupportedError
from coremat.ffn import gathered
from coremat.offload.ffn_streaming import offloaded_ffn

NEW = 5
METHODS = configs.CONFIGS | configs.BEFORE_DECODER
WAYS = ("not copied", "copied", "offloaded")


@contextmanager
def way(name: str, model) -> Iterator[None]:
    """The gathered backend, held to one of its ways; by its own rule it changes from the first to the second."""
    steps = {"not copied": float("inf"), "copied": 0}
    with ExitStack() as undo, pytest.MonkeyPatch.context() as patch:
        if name in steps:
            patch.setattr(gathered, "break_even_steps", lambda share: steps[name])
        else:
            undo.enter_context(offloaded_ffn(model, "cpu"))
        yield


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", WAYS)
def test_every_method_equals_hiding_and_zeroing(model, errors, name, method):
    with way(name, model):
        compare(model, batch("ragged"), METHODS[method], errors, f"{name}, {method}", new=NEW)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_through_the_static_step(model, method):
    with coremat.apply(model, METHODS[method]) as session:
        expected = answer(model, batch("ragged"), new=NEW).tokens
        decoder = GraphDecoder(model, session, NEW, batch_size=len(expected))
        assert torch.equal(decoder.generate(batch("ragged"), NEW), expected)


@pytest.mark.parametrize("name", WAYS)
def test_a_new_prompt_finds_nothing_of_the_last(model, name):
    alone = {}
    for prompt in ("one", "ragged", "no-image"):
        with way(name, model), coremat.apply(model, "corematching"):
            alone[prompt] = answer(model, batch(prompt), new=NEW)
    with way(name, model), coremat.apply(model, "corematching"):
        for prompt in ("ragged", "one", "no-image", "ragged", "one"):
            again = answer(model, batch(prompt), new=NEW)
            assert torch.equal(again.tokens, alone[prompt].tokens)
            assert torch.equal(again.logits, alone[prompt].logits)


def tensor_bytes() -> int:
    """Of all tensors that anything holds on to, without those that other tests' compilers traced with."""
    gc.collect()
    found = (thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter))
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}
    return sum(storages.values())


def test_two_hundred_prompts_leak_nothing(model):
    with coremat.apply(model, "corematching"):
        sizes = []
        for number in range(200):
            answer(model, batch("one" if number % 2 else "same-length"), new=3)
            if number in (10, 100, 198):
                sizes.append(tensor_bytes())
    assert sizes[0] == sizes[1] == sizes[2]


def test_leaving_gives_the_workspace_back(model):
    before = tensor_bytes()
    with coremat.apply(model, "corematching") as session:
        answer(model, batch("one"), new=4)
        assert session.workspace_bytes > 0
        assert tensor_bytes() > before
    del session
    assert tensor_bytes() == before


def test_one_set_for_the_batch_is_that_of_all_votes(model):
    """Chosen by the sum of all sequences' votes; a batch of one has the set that it has alone."""
    with coremat.apply(model, "core-neurons:neuron_sets=batch") as session:
        answer(model, batch("same-length"), new=2)
        pooled = chosen(session).neurons
        answer(model, batch("one"), new=2)
        single = chosen(session).neurons
    with coremat.apply(model, "core-neurons") as session:
        answer(model, batch("one"), new=2)
        own = chosen(session).neurons
    assert all(core.shape == (1, 64) for core in pooled.values())
    assert all(torch.equal(single[layer], own[layer]) for layer in own)


def test_a_set_for_the_batch_leaves_each_sequence_its_own_tokens(model):
    kept = {}
    for sets in ("sequence", "batch"):
        with coremat.apply(model, f"corematching:neuron_sets={sets}") as session:
            answer(model, batch("ragged"), new=2)
            kept[sets] = [row.kept for row in session.stats]
    assert kept["batch"] == kept["sequence"]


def test_the_share_of_rows_that_a_batch_needs(model):
    with coremat.apply(model, "core-neurons") as session:
        assert session.ffn_share == 1
        answer(model, batch("one"), new=1)
        assert session.ffn_share == pytest.approx(64 / 160)
        answer(model, batch("same-length"), new=1)
        union = [len(set(core.flatten().tolist())) for core in chosen(session).neurons.values()]
        assert session.ffn_share == pytest.approx(sum(union) / len(union) / 160)
        assert session.ffn_share > 64 / 160


def test_backends_that_cannot_be_are_refused(model):
    with pytest.raises(ConfigError, match="backend is 'fast'; accepted: auto, gathered, indexed"):
        coremat.apply(model, "corematching", backend="fast").__enter__()
    with pytest.raises(UnsupportedError, match="need Triton and a CUDA device"):
        coremat.apply(model, "corematching", backend="indexed").__enter__()


def test_gathered_may_be_asked_for(model):
    with coremat.apply(model, "corematching", backend="gathered"):
        named = answer(model, batch("one"))
    with coremat.apply(model, "corematching"):
        assert torch.equal(named.logits, answer(model, batch("one")).logits)
