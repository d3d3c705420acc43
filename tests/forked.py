"""Processes for tests that need several: forked from one that has waited for the imports already."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from functools import cache
from multiprocessing.context import BaseContext
from typing import Any

from torch.distributed import TCPStore

PRELOADED = ["coremat.tasks.lmms_eval.model", "coremat.tasks.run.runner", "lmms_eval.evaluator"]


@cache
def context() -> BaseContext:
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(PRELOADED)
    return forkserver


def in_ranks(world: int, work: Callable[..., Any], *words: Any, patience: float = 1) -> list[Any]:
    """What `work(rank, *words)` returned, or the exception that it raised, in each of so many ranks.

    As with a launcher, the store of all ranks is here, and is gone `patience` seconds after one of them has failed.
    """
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    with ProcessPoolExecutor(world, mp_context=context()) as pool:
        futures = [pool.submit(_one, rank, world, store.port, work, words) for rank in range(world)]
        wait(futures, return_when=FIRST_EXCEPTION)
        wait(futures, timeout=patience)
        del store
    return [future.exception() or future.result() for future in futures]


def _one(rank: int, world: int, port: int, work: Callable[..., Any], words: tuple[Any, ...]) -> Any:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update({"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCH_CPP_LOG_LEVEL": "ERROR"})
    return work(rank, *words)
