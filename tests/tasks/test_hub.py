"""Datasets of a hub, without the network: when a token is asked for, and what is said where one is needed."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import datasets
import huggingface_hub
import pytest
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from mirrors import write_mirrors

from coremat.errors import DataError
from coremat.tasks.catalogue import resolve_task
from coremat.tasks.data.fetch import fetch
from coremat.tasks.data.hub import access_advice
from coremat.tasks.data.local import local_datasets
from coremat.tasks.lmms_eval.load import load_task

GATED = "Access to dataset a/b is restricted. You must be authenticated to access it."


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of each call of `datasets.load_dataset`, which a stand-in answers from local copies."""
    write_mirrors(tmp_path, ["gqa", "pope"])
    calls: list[dict[str, Any]] = []
    with local_datasets(tmp_path):
        serve = datasets.load_dataset

    def load(path: str, name: str | None = None, **options: Any) -> Any:
        calls.append(options)
        return serve(path, name, **options)

    monkeypatch.setattr(datasets, "load_dataset", load)
    return calls


def with_token(monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)


@pytest.mark.parametrize("name", ["gqa", "pope", "lmms-eval:gqa"])
def test_public_data_need_no_account(name: str, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a task's module asks by itself, as lmms-eval's own gqa does for its images."""
    with_token(monkeypatch, None)
    stand_in = datasets.load_dataset
    assert all(task.size for task in load_task(resolve_task(name), None))
    assert asked
    assert not any("token" in options for options in asked)
    assert datasets.load_dataset is stand_in


def test_a_token_that_is_there_is_sent(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    with_token(monkeypatch, "hf_mine")
    load_task(resolve_task("pope"), None)
    assert [options["token"] for options in asked] == [True, True, True]


def refusal(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    return kind(GATED, response=Mock(status_code=status, headers={}))


@pytest.mark.parametrize(
    ("error", "is_refusal"),
    [
        (refusal(GatedRepoError, 403), True),
        (refusal(HfHubHTTPError, 401), True),
        (refusal(HfHubHTTPError, 403), True),
        (refusal(RepositoryNotFoundError, 404), False),
        (refusal(HfHubHTTPError, 500), False),
        (ConnectionError("no network"), False),
    ],
)
def test_what_is_given_to_accounts_alone(error: Exception, is_refusal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said in one sentence with the way in, also where `datasets` wraps the hub's error into its own."""

    def load(path: str, *_: Any, **__: Any) -> None:
        raise DatasetNotFoundError(f"Dataset '{path}' is a gated dataset on the Hub. Visit it.") from error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError) as caught:
        load_task(resolve_task("gqa"), None)
    said = str(caught.value)
    way = (
        "; ask for access at https://huggingface.co/datasets/lmms-lab-encoder/GQA, then log in with `hf auth login` or "
        "set HF_TOKEN"
    )
    instead = "; with a hub: coremat data fetch --tasks gqa --data-root DIR"
    assert said == (
        "task gqa needs the dataset lmms-lab-encoder/GQA (67.7 MB), which is not here and can't be fetched: Dataset "
        f"'lmms-lab-encoder/GQA' is a gated dataset on the Hub{way if is_refusal else instead}"
    )


def test_fetching_says_the_way_in_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", Mock(side_effect=refusal(GatedRepoError, 403)))
    way = r"; ask for access at https://huggingface.co/datasets/lmms-lab-encoder/POPE, then log in"
    with pytest.raises(DataError, match=way):
        fetch(tmp_path, resolve_task("pope"))
    assert access_advice("a/b", OSError("disk")) == ""
