"""One evaluation in several processes, on one machine or many: who answers which batch, and how far all of them are.

The launcher (torchrun, or `coremat eval --num-processes`) says by the usual environment which rank a process is. All
ranks form the same batches from the same questions and answer every `world`-th one, each into a journal of its own in
the run's folder, which all machines must share. Scores are rank 0's alone, from all journals, once every rank is
through: so answers and table are those of one process, and a rank that dies has lost one batch at most.
Between the ranks goes little: what they are about to do, compared at the start over gloo (NCCL between GPUs), and
what stands in the launcher's store: a count of the answers, who is ready and through, and a pulse of each.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from coremat.errors import ConfigError, RankError

PATIENCE = timedelta(days=2)  # the first rank may be fetching a dataset
ANSWERS, READY, DONE, PULSE = "coremat/answers", "coremat/ready", "coremat/done", "coremat/pulse"
POLL_SECONDS = 0.2
PULSE_SECONDS, SILENCE_SECONDS = 5, 120
GOES_ON = "the answers made so far are kept, and the same command on the same folder goes on"
LAUNCHERS = ("RANK", "MASTER_ADDR", "MASTER_PORT")


class Alone:
    """One process: rank 0 of 1."""

    rank, world = 0, 1

    def agree(self, run: Mapping[str, Any]) -> None:
        """Nobody to disagree with."""

    def after_first(self, work: Callable[[], Any], then: Callable[[], Any] | None = None) -> Any:
        return work()

    def count(self, answers: int) -> int:
        """So many more; how many that makes for the whole run since the last call."""
        return answers

    def finish(self, show: Callable[[int], None]) -> None:
        """Nobody to wait for."""


class Ranks(Alone):
    """This process among those that the launcher started. device: "cpu", or "cuda" and a number."""

    def __init__(self, device: str) -> None:
        from torch import distributed

        self.device = device
        with _connected():
            self.store, self.rank, self.world = next(distributed.rendezvous("env://", timeout=PATIENCE))
        self.seen = self.turns = 0
        self.through = threading.Event()
        threading.Thread(target=self._beat, args=(self.store.clone(),), daemon=True).start()

    def _beat(self, store: Any) -> None:
        """A pulse until this rank is through: no launcher tells a machine of a process that died on another."""
        with suppress(RankError), _connected():
            while not self.through.wait(PULSE_SECONDS):
                store.add(f"{PULSE}/{self.rank}", 1)

    def agree(self, run: Mapping[str, Any]) -> None:
        """ConfigError on every rank, unless all of them are about to do the same."""
        runs = self._gathered(dict(run))
        for rank, other in enumerate(runs):
            apart = [name for name in run if other.get(name) != runs[0].get(name)]
            if apart:
                name = apart[0]
                raise ConfigError(
                    f"rank {rank} has {name} {other.get(name)!r} and rank 0 {runs[0].get(name)!r}; "
                    "all ranks of a run need the same options and weights"
                )

    def _gathered(self, value: Any) -> list[Any]:
        """Every rank's value. The process group ends here: lmms-eval would use one that it finds."""
        import torch
        from torch import distributed

        cuda = self.device.startswith("cuda")
        if cuda:
            torch.cuda.set_device(self.device)
        options = {"store": self.store, "rank": self.rank, "world_size": self.world, "timeout": PATIENCE}
        distributed.init_process_group("nccl" if cuda else "gloo", **options)
        try:
            values: list[Any] = [None] * self.world
            distributed.all_gather_object(values, value)
        finally:
            distributed.destroy_process_group()
        return values

    def after_first(self, work: Callable[[], Any], then: Callable[[], Any] | None = None) -> Any:
        """Work on rank 0, and then on the others, or what they do in its place: what the first one makes, they find."""
        self.turns += 1
        ready = f"{READY}/{self.turns}"
        if self.rank:
            with _connected():
                self.store.wait([ready], PATIENCE)
            return (then or work)()
        made = work()
        with _connected():
            self.store.set(ready, "yes")
        return made

    def count(self, answers: int) -> int:
        """So many more of this rank; how many that makes for all ranks since this one last looked."""
        with _connected():
            total = self.store.add(ANSWERS, answers)
        new, self.seen = total - self.seen, total
        return new

    def finish(self, show: Callable[[int], None]) -> None:
        """Say that this rank is through; rank 0 waits for the others and shows how far they are."""
        self.through.set()
        with _connected():
            self.store.set(f"{DONE}/{self.rank}", "yes")
            if self.rank == 0:
                self._wait(show)

    def _wait(self, show: Callable[[int], None]) -> None:
        heard: dict[int, tuple[int, float]] = {}
        others = list(range(1, self.world))
        while others:
            time.sleep(POLL_SECONDS)
            others = [rank for rank in others if not self.store.check([f"{DONE}/{rank}"])]
            show(self.count(0))
            for rank in others:
                beats, now = self.store.add(f"{PULSE}/{rank}", 0), time.monotonic()
                before, since = heard.get(rank, (None, now))
                heard[rank] = (beats, since if beats == before else now)
                if now - heard[rank][1] > SILENCE_SECONDS:
                    raise RankError(f"rank {rank} has given no sign of life for {SILENCE_SECONDS} seconds; {GOES_ON}")


@contextmanager
def _connected() -> Iterator[None]:
    """The store is lost with the launcher that holds it."""
    from torch.distributed import DistError

    try:
        yield
    except DistError as error:
        raise RankError(f"the launcher, or the machine that it ran on, is gone; {GOES_ON}") from error


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def own_device(device: str) -> str:
    """The device of this process: of several GPUs each has its own. ConfigError where there are too few."""
    import torch

    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.startswith("cuda:") and here > 1:
        raise ConfigError(f"device is {device!r} for {here} processes; accepted: auto or cuda, for a GPU of each.")
    if not launched() or device not in ("auto", "cuda") or not torch.cuda.is_available():
        return device
    number, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= there:
        raise ConfigError(f"process {number} of this machine has no GPU of its own; accepted: up to {there} processes.")
    return f"cuda:{number}"


def ranks_here(device: str) -> Alone:
    """ConfigError where the environment speaks of several processes and not of this one's place among them."""
    if not launched():
        return Alone()
    missing = [name for name in LAUNCHERS if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']!r} and {missing[0]} is not set; accepted: what torchrun sets, "
            "or --num-processes without a launcher."
        )
    return Ranks(device)
