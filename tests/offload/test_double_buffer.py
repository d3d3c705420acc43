"""The order of copies and computation, played through on simulated streams that promise no more than CUDA's do."""

import random
from contextlib import contextmanager

import pytest
import torch

from coremat.offload.double_buffer import Copier, DoubleBuffer, StreamCopier, copier_for

CPU = torch.device("cpu")


class Machine:
    """Streams as queues. Between them nothing is promised but what events say: `run` draws who goes next.

    Puts itself in the place of torch.cuda's streams and events.
    """

    def __init__(self, monkeypatch):
        self.compute = self.current = FakeStream()
        self.streams = [self.compute]
        monkeypatch.setattr(torch.cuda, "Stream", self.new_stream)
        monkeypatch.setattr(torch.cuda, "Event", lambda: FakeEvent(self))
        monkeypatch.setattr(torch.cuda, "stream", self.inside)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)

    def new_stream(self, device):
        self.streams.append(FakeStream())
        return self.streams[-1]

    @contextmanager
    def inside(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def run(self, draw):
        """Until nothing is left, or nothing can go on."""
        while runnable := [s for s in self.streams if s.queue and s.queue[0][0]()]:
            draw(runnable).queue.pop(0)[1]()
        assert not any(stream.queue for stream in self.streams), "the streams wait for each other"


class FakeStream:
    def __init__(self):
        self.queue = []

    def do(self, action, when=lambda: True):
        self.queue.append((when, action))

    def wait_event(self, event):
        """For the event's last record at this moment, as CUDA has it."""
        awaited = event.asked
        self.do(lambda: None, when=lambda: event.done >= awaited)


class FakeEvent:
    def __init__(self, machine):
        self.machine, self.asked, self.done = machine, 0, 0

    def record(self, stream):
        self.asked += 1
        stream.do(self.happen)

    def happen(self):
        self.done += 1


class FakeBuffer:
    """Device memory: filled by a copy in two steps, between which it holds neither one thing nor the other."""

    def __init__(self, machine):
        self.machine, self.content = machine, None

    def copy_(self, source, non_blocking):
        assert non_blocking
        assert self.machine.current is not self.machine.compute
        for content in ("torn", int(source[0])):
            self.machine.current.do(lambda content=content: setattr(self, "content", content))


def seen(machine, copier, layers, passes, draw):
    """What each layer's computation, in two steps, found in its buffer, beside what it should have found."""
    host = torch.arange(layers)[:, None]
    pair = DoubleBuffer(host, [FakeBuffer(machine) for _ in range(min(2, layers))], copier)
    found = []
    for number in list(range(layers)) * passes:
        with pair.on_device(number) as buffer:
            for _ in range(2):
                machine.compute.do(lambda buffer=buffer, number=number: found.append((buffer.content, number)))
    machine.run(draw)
    assert len(found) == 2 * layers * passes
    return found


DRAWS = {"compute first": lambda streams: streams[0], "copies first": lambda streams: streams[-1]} | {
    f"random {seed}": random.Random(seed).choice for seed in range(20)
}


@pytest.mark.parametrize("layers", [1, 2, 3, 6])
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_every_layer_finds_its_own_weights(monkeypatch, layers, draw):
    machine = Machine(monkeypatch)
    found = seen(machine, StreamCopier(CPU), layers, 3, draw)
    assert all(content == number for content, number in found)


class NeverWaits(StreamCopier):
    def wait(self, slot):
        pass


class NeverReleases(StreamCopier):
    """The first release, by the constructor, has to stay: without a record no event can be waited for."""

    def release(self, slot):
        if not self._free[slot].asked:
            super().release(slot)


@pytest.mark.parametrize("broken", [NeverWaits, NeverReleases])
def test_the_simulation_notices_a_broken_order(monkeypatch, broken):
    wrong = 0
    for draw in DRAWS.values():
        with monkeypatch.context() as patch:
            found = seen(Machine(patch), broken(CPU), 6, 3, draw)
        wrong += any(content != number for content, number in found)
    assert wrong > 0


def test_the_copy_of_the_next_layer_is_asked_for_before_the_layer_between_begins(monkeypatch):
    """When layer i is computed, the copies of i and i + 1 are both on their way, and nothing later is."""
    machine = Machine(monkeypatch)
    asked = []
    monkeypatch.setattr(FakeBuffer, "copy_", lambda buffer, source, non_blocking: asked.append(int(source[0])))
    pair = DoubleBuffer(torch.arange(5)[:, None], [FakeBuffer(machine), FakeBuffer(machine)], StreamCopier(CPU))
    for number in range(5):
        assert asked == [i % 5 for i in range(number + 2)]
        with pair.on_device(number):
            assert asked == [i % 5 for i in range(number + 2)]


class Weights:
    """Real tensors and the copier without streams."""

    def __init__(self, layers=5):
        self.host = torch.arange(layers, dtype=torch.float32)[:, None, None].repeat(1, 3, 4)
        self.pair = DoubleBuffer(self.host, torch.empty(2, 3, 4), Copier())

    def read(self, number):
        with self.pair.on_device(number) as buffer:
            return buffer.clone()


def test_each_pass_moves_every_layer_once():
    of = Weights()
    for passes in range(1, 4):
        assert all(torch.equal(of.read(number), of.host[number]) for number in range(5))
        assert of.pair.bytes_moved == (2 + 5 * passes) * of.host[0].nbytes


@pytest.mark.parametrize("order", [[3, 1, 4, 4, 0, 2], [0, 1, 0, 1, 2, 3, 4], [4, 3, 2, 1, 0]])
def test_any_order_gives_the_right_weights(order):
    of = Weights()
    assert all(torch.equal(of.read(number), of.host[number]) for number in order)


def test_a_pass_that_broke_off_does_not_spoil_the_next():
    of = Weights()
    of.read(0)
    with pytest.raises(KeyError), of.pair.on_device(1):
        raise KeyError
    assert all(torch.equal(of.read(number), of.host[number]) for number in range(5))


def test_a_closed_ring_holds_no_memory():
    of = Weights()
    of.read(0)
    of.pair.close()
    assert of.pair.host.nbytes == of.pair.buffers.nbytes == 0
    assert of.pair.bytes_moved == 3 * of.host[0].nbytes


def test_devices_without_streams_copy_at_once():
    assert type(copier_for(CPU)) is Copier
