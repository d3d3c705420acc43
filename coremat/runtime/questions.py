"""What the prompts of a batch ask: for methods that choose image tokens by the question."""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from coremat.errors import ConfigError
from coremat.methods.views import Question
from coremat.runtime.input_checks import for_each_row

Questions = Sequence[str] | Callable[[list[int]], str]
NO_TEXT = (
    "the method reads the questions as text, and the session has none: set session.questions to one text per sequence, "
    "or to what makes a text of token ids, such as a tokenizer's decode."
)


def spelled(ids: list[int]) -> str:
    """What stands for a question where token ids are drawn at random."""
    return " ".join(map(str, ids))


def questions_of(
    given: Questions | None, ids: torch.Tensor, images: torch.Tensor, mask: torch.Tensor | None
) -> list[Question]:
    """One for each sequence; nothing is decoded before it is read.

    ids: int64 [B, S]; images: int64 [B, S], the image of each token, -1 for text and padding; mask: [B, S], 0 for
    padding. ConfigError for another number of texts than sequences.
    """
    if isinstance(given, str):
        raise ConfigError(f"session.questions is {given!r}; accepted: a list of texts, one per sequence.")
    if given is None or callable(given):
        text = (images < 0) if mask is None else (images < 0) & mask.bool().cpu()
        decode = partial(_decoded, given)
        return [Question({"text": partial(decode, row, own)}) for row, own in zip(ids, text, strict=True)]
    return [Question({"text": partial(str, one)}) for one in for_each_row(given, len(ids), "questions")]


def _decoded(decode: Callable[[list[int]], str] | None, ids: torch.Tensor, text: torch.Tensor) -> str:
    if decode is None:
        raise ConfigError(NO_TEXT)
    return decode(ids.cpu()[text].tolist())


def question_embeddings(embeddings: torch.Tensor, images: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """[q, H]: of the text behind the sequence's last image, or of all its text where none is behind it.

    embeddings: [S, H]; images: int64 [S], -1 for text and padding; valid: bool [S], False for padding.
    """
    text = valid & (images < 0)
    last = int((images >= 0).nonzero()[-1, 0])
    behind = text & (torch.arange(len(text)) > last)
    columns = (behind if behind.any() else text).nonzero()[:, 0]
    return embeddings[columns.to(embeddings.device)]
