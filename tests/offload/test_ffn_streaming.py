"""An offloaded model answers as the whole one does, moves what it must and no more, and comes back bit for bit."""

import gc
import sys
from contextlib import ExitStack, nullcontext

import pytest
import torch
from configs import CONFIGS
from tiny import BATCHES, LAYERS, NEURONS, answer, batch, chosen, tiny_llava

import coremat
from coremat.errors import ConfigError, UnsupportedError
from coremat.methods.registry import parse
from coremat.models.families import adapter_for
from coremat.offload import double_buffer, ffn_streaming, placement
from coremat.offload.accelerate import accelerate_offload
from coremat.offload.ffn_streaming import offloaded_ffn

METHODS = {
    "dense": None,
    "corematching": "corematching",
    "neuron-only": "core-neurons",
    "token-only": "core-tokens",
    "neurons-in-prefill": "corematching:prefill_from=2",
    "one-set-per-batch": "corematching:neuron_sets=batch",
}
LAYER_BYTES = 3 * NEURONS * 64 * 4


def answers(model, method, names=tuple(BATCHES), **options):
    """For several prompts in a row: the answer, and what was chosen for it."""
    if method is None:
        return [(answer(model, batch(name), **options), None) for name in names]
    with coremat.apply(model, method) as session:
        return [(answer(model, batch(name), **options), chosen(session)) for name in names]


def assert_same(got, wanted):
    """Tokens and choices; logits but for the rounding that another layout of `down_proj` brings."""
    for (answered, choice), (original, wanted_choice) in zip(got, wanted, strict=True):
        assert torch.equal(answered.tokens, original.tokens)
        torch.testing.assert_close(answered.logits, original.logits, rtol=0, atol=2e-5)
        if choice is not None:
            assert torch.equal(choice.keep, wanted_choice.keep)
            assert all(torch.equal(own, wanted_choice.neurons[n]) for n, own in choice.neurons.items())


@pytest.fixture(scope="module")
def whole(model):
    """What the model answers when nothing is offloaded, by method."""
    return {name: answers(model, method) for name, method in METHODS.items()}


@pytest.mark.parametrize("method", METHODS)
def test_answers_are_those_of_the_whole_model(model, whole, method):
    with offloaded_ffn(model, "cpu"):
        assert_same(answers(model, METHODS[method]), whole[method])


@pytest.mark.parametrize("resident", [1, 3, LAYERS - 2, LAYERS - 1, LAYERS])
def test_resident_layers(model, whole, resident):
    with offloaded_ffn(model, "cpu", resident):
        assert_same(answers(model, "corematching"), whole["corematching"])


def test_biases_stay_where_the_computation_is(bias_model):
    wanted = answers(bias_model, "corematching", ["ragged"])
    with offloaded_ffn(bias_model, "cpu"):
        assert_same(answers(bias_model, "corematching", ["ragged"]), wanted)


class Hasty(double_buffer.Copier):
    """The worst that streams may do: a buffer is nonsense from its release until it is waited for."""

    def __init__(self):
        self.pending, self.targets = {}, {}

    def copy(self, slot, target, source):
        self.pending[slot], self.targets[slot] = source, target
        target.fill_(torch.nan)

    def wait(self, slot):
        self.targets[slot].copy_(self.pending.pop(slot))

    def release(self, slot):
        self.targets[slot].fill_(torch.nan)


@pytest.mark.parametrize("method", CONFIGS.values(), ids=CONFIGS)
def test_nothing_reads_a_buffer_before_its_copy_or_after_its_release(model, method, monkeypatch):
    wanted = answers(model, method, ["ragged", "one"], new=3)
    monkeypatch.setattr(ffn_streaming, "copier_for", lambda device: Hasty())
    with offloaded_ffn(model, "cpu", 1):
        assert_same(answers(model, method, ["ragged", "one"], new=3), wanted)


@pytest.mark.parametrize("resident", [0, 2])
@pytest.mark.parametrize("method", METHODS)
def test_bytes_moved(model, method, resident):
    """Prefill: every offloaded layer once. A step: the same again, or nothing if it takes core neurons only."""
    spec = METHODS[method]
    away = (LAYERS - resident) * LAYER_BYTES
    sparse = spec is not None and parse(spec).prunes_neurons
    with offloaded_ffn(model, "cpu", resident) as moved:
        for name in ("ragged", "one"):
            for new in (1, 4):
                before = moved.bytes_moved
                answers(model, spec, [name], new=new)
                assert moved.bytes_moved - before == away * (1 if sparse else new)


@pytest.mark.parametrize("method", ["corematching", "neuron-only", "one-set-per-batch"])
def test_decoding_needs_nothing_that_is_offloaded(method):
    """After the prefill host and buffers hold nonsense, of another type: as useless to a step as another device's."""
    model = tiny_llava()
    weights = [weight for layer in model.get_decoder().layers for weight in ffn_streaming._weights(layer.mlp)]
    with offloaded_ffn(model, "cpu") as moved:
        wanted = answers(model, METHODS[method], ["ragged"])

        def spoil(module, args, output):
            moved.buffers.buffers.fill_(torch.nan)
            for weight in weights:
                weight.data = torch.full_like(weight, torch.nan, dtype=torch.float64)

        handle = model.register_forward_hook(spoil)
        assert_same(answers(model, METHODS[method], ["ragged"]), wanted)
        handle.remove()
    assert all(weight.isnan().all() for weight in weights)


def test_an_ffn_computes_with_its_buffer(model):
    seen = []

    def look(module, args):
        seen.append(module.weight.untyped_storage().data_ptr())

    parts = [part for layer in model.get_decoder().layers for part in layer.mlp.children() if hasattr(part, "weight")]
    with offloaded_ffn(model, "cpu", 1) as moved, ExitStack() as hooks:
        for part in parts:
            hooks.callback(part.register_forward_pre_hook(look).remove)
        answer(model, batch("one"), new=1)
        on_buffer = [address == moved.buffers.buffers.untyped_storage().data_ptr() for address in seen]
    assert on_buffer == [False] * 3 + [True] * 3 * (LAYERS - 1)


def test_sizes(model):
    with offloaded_ffn(model, "cpu", 1) as moved:
        assert moved.host_bytes == (LAYERS - 1) * LAYER_BYTES
        assert moved.buffer_bytes == moved.bytes_moved == 2 * LAYER_BYTES
    with offloaded_ffn(model, "cpu", LAYERS) as moved:
        assert moved.host_bytes == moved.buffer_bytes == moved.bytes_moved == 0


def test_one_layer_away_needs_one_buffer(model):
    with offloaded_ffn(model, "cpu", LAYERS - 1) as moved:
        assert moved.buffer_bytes == LAYER_BYTES


def test_the_double_buffer_lets_go_of_both_sides(model):
    with offloaded_ffn(model, "cpu") as moved:
        pass
    assert moved.buffers.host.nbytes == moved.buffers.buffers.nbytes == 0
    assert moved.host_bytes == LAYERS * LAYER_BYTES


# --- the model inside the block, and afterwards -----------------------------------------------------------------


def description(model):
    """Of every parameter and buffer: which object, value, device and layout; of every module its own attributes."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    placed = {name: (id(t), t.device, t.stride(), t.dtype, t.requires_grad) for name, t in tensors.items()}
    values = {name: t.detach().clone() for name, t in tensors.items()}
    return placed, values, {name: sorted(module.__dict__) for name, module in model.named_modules()}


@pytest.fixture
def untouched(model):
    answer(model, batch("one"))  # transformers adds attributes at the first call
    placed, values, attributes = description(model)
    yield
    placed_after, values_after, attributes_after = description(model)
    assert placed == placed_after
    assert attributes == attributes_after
    assert all(torch.equal(value, values_after[name]) for name, value in values.items())


def fail(module, args):
    raise KeyError


@pytest.mark.usefixtures("untouched")
class TestRestored:
    @pytest.mark.parametrize("resident", [0, 3, LAYERS])
    def test_after_the_block(self, model, resident):
        with offloaded_ffn(model, "cpu", resident):
            answers(model, "corematching")

    def test_after_an_exception_in_the_block(self, model):
        with pytest.raises(KeyError), offloaded_ffn(model, "cpu"):
            raise KeyError(str(answer(model, batch("one"))))

    @pytest.mark.parametrize("number", [0, 3, LAYERS - 1])
    def test_after_an_exception_in_an_ffn(self, model, number):
        down = model.get_decoder().layers[number].mlp.down_proj
        with offloaded_ffn(model, "cpu"):
            wanted = answer(model, batch("ragged"))
            handle = down.register_forward_pre_hook(fail)
            with pytest.raises(KeyError):
                answer(model, batch("one"))
            handle.remove()
            assert torch.equal(answer(model, batch("ragged")).logits, wanted.logits)

    @pytest.mark.parametrize("step", ["copier_for", "move", "_move_into"])
    def test_after_an_exception_on_the_way_in(self, model, monkeypatch, step):
        original, calls = getattr(ffn_streaming, step), []

        def fail(*args):
            calls.append(args)
            if len(calls) == 3 or step != "_move_into":
                raise MemoryError
            return original(*args)

        monkeypatch.setattr(ffn_streaming, step, fail)
        with pytest.raises(MemoryError), offloaded_ffn(model, "cpu"):
            pass

    def test_after_coremat_apply_inside_failed(self, model):
        with pytest.raises(KeyError), offloaded_ffn(model, "cpu"), coremat.apply(model):
            raise KeyError(str(answer(model, batch("one"))))

    def test_layouts_of_every_kind(self, model):
        """A model whose `down_proj` lies neuron by neuron gets it back so."""
        weight = model.get_decoder().layers[1].mlp.down_proj.weight
        before = weight.data
        weight.data = before.T.contiguous().T
        with offloaded_ffn(model, "cpu"):
            answer(model, batch("one"))
        assert weight.stride() == (1, 64)
        assert torch.equal(weight, before)
        weight.data = before


def test_state_dict_is_true_throughout(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def check():
        now = model.state_dict()
        assert now.keys() == before.keys()
        assert all(torch.equal(value, before[name]) for name, value in now.items())

    with offloaded_ffn(model, "cpu") as moved:
        check()
        answer(model, batch("one"))
        check()
        adapter = adapter_for(model)
        weight = adapter.ffn(adapter.layers[0]).gate_proj.weight
        assert weight.untyped_storage().data_ptr() == moved.buffers.host.untyped_storage().data_ptr()
    check()


def test_everything_else_goes_to_the_device_and_back(model, monkeypatch):
    """The meta device stands for another one; that it cannot hold this model's values is no matter here."""
    ffn = {id(weight) for layer in model.get_decoder().layers for weight in ffn_streaming._weights(layer.mlp)}
    others = {id(t): t for t in (*model.parameters(), *model.buffers()) if id(t) not in ffn}
    moves = []
    monkeypatch.setattr(placement, "to_device", lambda tensor, device: moves.append((id(tensor), device.type)))
    with offloaded_ffn(model, "meta"):
        assert sorted(moves) == sorted((number, "meta") for number in others)
        moves.clear()
    assert sorted(moves) == sorted((number, "cpu") for number in others)


# --- memory ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tensor_bytes(model):
    """Counts the bytes of every storage that is alive: the model's, and those of tensors made since the test began."""
    gc.freeze()  # what was there before need not be looked at again

    def count():
        gc.collect()
        made = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
        storages = [tensor.untyped_storage() for tensor in (*made, *model.parameters())]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    yield count
    gc.unfreeze()


@pytest.mark.parametrize("method", [None, "corematching"], ids=["dense", "corematching"])
def test_fifty_prompts_leave_no_memory(model, tensor_bytes, method):
    @torch.no_grad()
    def read(names):
        with coremat.apply(model, method) if method else nullcontext():
            for name in names:
                model(**batch(name))

    before = tensor_bytes()
    with offloaded_ffn(model, "cpu", 1):
        read(["ragged", "one"])
        inside = tensor_bytes()
        read(["ragged", "one"] * 25)
        assert tensor_bytes() == inside
        assert inside - before == 2 * LAYER_BYTES
    assert tensor_bytes() == before


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resident", [-1, LAYERS + 1, True, 1.0, "2"])
def test_a_number_of_layers_that_there_is_not(model, resident):
    with pytest.raises(ConfigError, match=f"resident_layers is {resident!r}; accepted for this model: 0 to {LAYERS}"):
        offloaded_ffn(model, "cpu", resident).__enter__()


@pytest.mark.usefixtures("untouched")
def test_offloading_comes_once_and_first(model):
    with offloaded_ffn(model, "cpu"), pytest.raises(ConfigError, match="replaced already"):
        offloaded_ffn(model, "cpu").__enter__()
    with coremat.apply(model), pytest.raises(ConfigError, match=r"once, before coremat\.apply"):
        offloaded_ffn(model, "cpu").__enter__()


def test_gradients_are_refused(model):
    with offloaded_ffn(model, "cpu"), pytest.raises(UnsupportedError, match="gradients are on"):
        model(**batch("one"))


def test_inference_mode_is_as_good_as_no_grad(model):
    with torch.no_grad():
        wanted = model(**batch("one")).logits
    with torch.inference_mode(), offloaded_ffn(model, "cpu"):
        torch.testing.assert_close(model(**batch("one")).logits, wanted, rtol=0, atol=2e-5)
    with torch.no_grad():
        assert torch.equal(model(**batch("one")).logits, wanted)


def test_weights_that_are_not_there():
    with torch.device("meta"):
        model = tiny_llava()
    for enter in (lambda: offloaded_ffn(model, "cpu"), lambda: accelerate_offload(model, "cpu", 10**9)):
        with pytest.raises(UnsupportedError, match="is on the meta device; accepted: a model with all its weights"):
            enter().__enter__()


def test_ffns_that_differ():
    model = tiny_llava()
    mlp = model.get_decoder().layers[2].mlp
    mlp.up_proj.weight.data = mlp.up_proj.weight.data.half()
    with pytest.raises(UnsupportedError, match=r"float16 \(160, 64\), float32 \(160, 64\); accepted: one shape"):
        offloaded_ffn(model, "cpu").__enter__()


class Runtime:
    """CUDA's host registration."""

    def __init__(self, answer):
        self.answer, self.pinned = answer, {}

    def cudaHostRegister(self, address, size, flags):
        self.pinned[address] = size
        return self.answer

    def cudaHostUnregister(self, address):
        del self.pinned[address]


def test_pinning_takes_the_block_as_it_is_and_gives_it_back(monkeypatch):
    runtime = Runtime(0)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    host = torch.zeros(3, 5)
    with ExitStack() as restore:
        assert ffn_streaming._pin(host, restore) >= 0
        assert runtime.pinned == {host.data_ptr(): 60}
    assert runtime.pinned == {}


def test_host_memory_that_cannot_be_pinned(monkeypatch):
    monkeypatch.setattr(torch.cuda, "cudart", lambda: Runtime(2))
    with ExitStack() as restore, pytest.raises(UnsupportedError, match=r"0.00 GB .* pinned .*CUDA error 2"):
        ffn_streaming._pin(torch.zeros(3), restore)


# --- accelerate -------------------------------------------------------------------------------------------------

LIMITS = {"some layers": 700_000, "everything": 10**9}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
def test_accelerates_own_offload(model, whole, limit):
    with accelerate_offload(model, "cpu", limit) as device_map:
        assert_same(answers(model, None), whole["dense"])
        offloaded = [name for name, place in device_map.items() if place == "cpu"]
        if limit == LIMITS["some layers"]:
            assert 0 < len([name for name in offloaded if ".layers." in name]) < LAYERS
        assert bool(offloaded) == (limit < LIMITS["everything"])
        assert any(p.is_meta for p in model.parameters()) == bool(offloaded)


@pytest.mark.usefixtures("untouched")
@pytest.mark.filterwarnings("ignore:Current model requires")
def test_a_limit_that_holds_nothing(model):
    with pytest.raises(UnsupportedError, match="memory_limit is 1 bytes, in which no part of this model fits on cpu"):
        accelerate_offload(model, "cpu", 1).__enter__()


@pytest.mark.usefixtures("untouched")
def test_accelerate_is_removed_after_an_exception(model):
    with pytest.raises(KeyError), accelerate_offload(model, "cpu", LIMITS["some layers"]):
        raise KeyError


def test_without_accelerate(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(UnsupportedError, match="accelerate, whose CPU offload is asked for, is not installed"):
        accelerate_offload(model, "cpu", 1).__enter__()
