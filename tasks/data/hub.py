"""Datasets of a hub: public ones without an account, and what to do about one that is given to accounts alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_account() -> Iterator[None]:
    """While this lasts, `datasets.load_dataset` is asked for the user's token only where there is one.

    Most of lmms-eval's tasks say `token: True`, which fails without an account, though their data are public. It must
    be entered before a task is loaded: lmms-eval's modules take the function over by name.
    """
    import datasets
    from huggingface_hub import get_token

    asking = datasets.load_dataset

    def load(*args: Any, **options: Any) -> Any:
        if options.get("token") is True and get_token() is None:
            del options["token"]
        return asking(*args, **options)

    datasets.load_dataset = load
    try:
        yield
    finally:
        datasets.load_dataset = asking


def access_advice(dataset: str, error: BaseException) -> str:
    """How to be let in, where `error` or a cause of it is the hub's refusal (401, 403); "" for any other error."""
    from huggingface_hub import constants

    if not any(_is_refusal(one) for one in _with_causes(error)):
        return ""
    page = f"{constants.ENDPOINT}/datasets/{dataset}"
    return f"; ask for access at {page}, then log in with `hf auth login` or set HF_TOKEN"


def _is_refusal(error: BaseException) -> bool:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    if isinstance(error, GatedRepoError):
        return True
    return isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403)


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
