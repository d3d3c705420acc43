"""Tiny models that all tests share, one thread, and the largest masking-equivalence error in the summary."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import tiny_llava
from transformers import LlavaForConditionalGeneration

from coremat.hardware.roofline import Roofline

ERRORS = pytest.StashKey[dict[str, float]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ERRORS] = {}


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of several hands its errors over."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["errors"] = session.config.stash[ERRORS]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[ERRORS].update(getattr(node, "workeroutput", {}).get("errors", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    errors = config.stash[ERRORS]
    if errors:
        worst = max(errors, key=errors.__getitem__)
        line = f"masking equivalence: {len(errors)} comparisons, largest logit error {errors[worst]:.1e} in {worst}"
        terminalreporter.write_line(line)


@pytest.fixture
def errors(request: pytest.FixtureRequest) -> dict[str, float]:
    """Largest logit error of each comparison, by name; the summary prints the largest of all."""
    return request.config.stash[ERRORS]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring on models of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model() -> LlavaForConditionalGeneration:
    return tiny_llava()


@pytest.fixture(scope="session")
def eager_model() -> LlavaForConditionalGeneration:
    return tiny_llava(attention="eager")


@pytest.fixture(scope="session")
def bias_model() -> LlavaForConditionalGeneration:
    return tiny_llava(mlp_bias=True)


@pytest.fixture(scope="session")
def exact_model() -> LlavaForConditionalGeneration:
    """float64: the rounding that padding brings is too small to move a choice."""
    return tiny_llava(dtype=torch.float64)


@pytest.fixture(scope="session")
def half_model() -> LlavaForConditionalGeneration:
    return tiny_llava(dtype=torch.bfloat16)


@pytest.fixture
def quick_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bench finds the limits of this machine at once."""
    monkeypatch.setattr("coremat.bench.measure.measure_roofline", lambda device, dtype: Roofline(1e10, 1e11))
