"""One batch of conversations in, answers with their times and figures out: what eval and run both stand on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from coremat.errors import DataError, UnsupportedError
from coremat.methods.base import Method
from coremat.models.families import ADAPTERS, adapter_for
from coremat.models.load import LoadedModel
from coremat.preprocessing.video import Clip
from coremat.runtime.session import Session, apply
from coremat.runtime.stats import SequenceStats
from coremat.timers import Marks

Conversation = list[dict[str, Any]]


@dataclass(frozen=True)
class Answer:
    """One answer, with its share of the batch's times.

    text: what was answered, stripped. new_tokens: with the end token. first_token_seconds: from the start of `generate`
    until the scores of the first new token are there, vision tower included, divided by the rows of the batch.
    decode_seconds_per_token: of the steps after it, divided alike; None if there was one token only.
    """

    text: str
    new_tokens: int
    first_token_seconds: float
    decode_seconds_per_token: float | None
    stats: SequenceStats


class TokenMarks(LogitsProcessor):
    """Changes nothing; marks when the scores of each new token are there."""

    def __init__(self, marks: Marks) -> None:
        self.marks = marks

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.marks.mark("token")
        return scores


class Answerer(Protocol):
    """Answers one batch.

    conversations: chat messages with images and videos inside ({"type": "image", "image": PIL}; {"type": "video",
    "video": what `Preprocessing.video` takes}); generation: arguments of HF `generate`, and `until`, strings that end
    an answer and are cut off; it is not changed.
    """

    def __call__(
        self,
        conversations: Sequence[Conversation],
        generation: dict[str, Any],
        sample_seeds: Sequence[int] | None = None,
    ) -> list[Answer]: ...


@contextmanager
def answering(loaded: LoadedModel, method: Method) -> Iterator[Answerer]:
    """The model under one method, for as many batches as there are: they share one workspace."""
    with apply(loaded.model, method) as session:
        yield partial(_answer, loaded, session)


def _answer(
    loaded: LoadedModel,
    session: Session,
    conversations: Sequence[Conversation],
    generation: dict[str, Any],
    sample_seeds: Sequence[int] | None = None,
) -> list[Answer]:
    options = deepcopy(generation)
    until = options.pop("until", None) or []
    inputs = prepare(loaded, conversations)
    marks = Marks(loaded.model.device)
    session.sample_seeds = sample_seeds
    session.questions = [question(conversation) for conversation in conversations]
    marks.mark("start")
    with torch.inference_mode():
        output = loaded.model.generate(
            **inputs, **options, logits_processor=LogitsProcessorList([TokenMarks(marks)]), return_dict_in_generate=True
        )
    stats = session.stats[:: max(1, int(options.get("num_beams", 1)))]
    new = output.sequences[:, inputs["input_ids"].shape[1] :]
    return _answers(loaded, new, until, [moment for _, moment in marks.seconds()], stats)


def question(conversation: Conversation) -> str:
    """What the user said last, without images and videos."""
    content = next((m["content"] for m in reversed(conversation) if m["role"] == "user"), "")
    parts = [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]
    return " ".join(parts)


def _answers(
    loaded: LoadedModel, new: torch.Tensor, until: Sequence[str], times: list[float], stats: list[SequenceStats]
) -> list[Answer]:
    rows, steps = len(new), len(times) - 2
    texts = loaded.tokenizer.batch_decode(new, skip_special_tokens=True)
    lengths = _lengths(new, loaded.tokenizer.pad_token_id, loaded.model.generation_config.eos_token_id)
    first = (times[1] - times[0]) / rows
    decode = (times[-1] - times[1]) / steps / rows if steps else None
    return [
        Answer(_cut(text, until).strip(), length, first, decode, row)
        for text, length, row in zip(texts, lengths, stats, strict=True)
    ]


def _lengths(new: torch.Tensor, padding: int, ends: int | list[int] | None) -> list[int]:
    """New tokens of each row [B, T]: up to its first end token, which may be what fills up shorter rows as well."""
    counts = (new != padding).sum(1)
    if ends is not None:
        ended = torch.isin(new, torch.tensor(ends, device=new.device))
        counts = torch.where(ended.any(1), ended.int().argmax(1) + 1, counts)
    return counts.tolist()


def _cut(text: str, until: Sequence[str]) -> str:
    for stop in until:
        text = text.split(stop, 1)[0]
    return text


def prepare(loaded: LoadedModel, conversations: Sequence[Conversation]) -> dict[str, torch.Tensor]:
    """Model inputs of one left-padded batch, on the model's device. DataError where images and text do not fit, or a
    video cannot be read; UnsupportedError for images or videos before a model that takes none."""
    processor, preprocessing = loaded.processor, loaded.preprocessing
    asked = [preprocessing.conversation(list(c)) for c in conversations]
    if not adapter_for(loaded.model).takes_images:
        return _text_inputs(loaded, asked)
    texts = [processor.apply_chat_template(c, add_generation_prompt=True) for c in asked]
    mean = tuple(getattr(getattr(processor, "image_processor", None), "image_mean", None) or (0.5, 0.5, 0.5))
    images = [preprocessing.image(part["image"], mean) for part in _parts(conversations) if part["type"] == "image"]
    clips = _clips(loaded, conversations)
    given = {"images": images or None, "text": texts, **_videos(clips)}
    try:
        batch = processor(**given, padding=True, return_tensors="pt", add_special_tokens=False)
    except (ValueError, StopIteration) as error:  # the latter from older versions, which count in silence
        counts = f"{len(images)} images, {len(clips)} videos and {len(texts)} questions"
        raise DataError(f"{counts} do not fit: {str(error) or 'placeholders are left'}") from error
    batch = batch.to(loaded.model.device)
    pixels = {name: batch[name].to(loaded.model.dtype) for name in batch if name.startswith("pixel_values")}
    return {**batch, **pixels}


def _text_inputs(loaded: LoadedModel, conversations: Sequence[Conversation]) -> dict[str, torch.Tensor]:
    """For a model of text alone: by its chat template, or, where its tokenizer has none, the bare text."""
    kinds = {part["type"] for part in _parts(conversations)} - {"text"}
    if kinds:
        raise UnsupportedError(f"{loaded.name} reads text alone, and a conversation holds {', '.join(sorted(kinds))}.")
    tokenizer = loaded.tokenizer
    said = [[{**message, "content": _words(message["content"])} for message in c] for c in conversations]
    if tokenizer.chat_template is None:
        texts = ["\n".join(message["content"] for message in c) for c in said]
    else:
        texts = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
    begins = tokenizer.chat_template is None  # a template writes the token that begins a text itself
    return dict(tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=begins).to(loaded.model.device))


def _words(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def _clips(loaded: LoadedModel, conversations: Sequence[Conversation]) -> list[Clip]:
    sources = [part["video"] for part in _parts(conversations) if part["type"] == "video"]
    if sources and not adapter_for(loaded.model).takes_videos:
        takers = ", ".join(family for family, adapter in ADAPTERS.items() if adapter.takes_videos)
        raise UnsupportedError(f"{loaded.name} takes no videos; families that do: {takers}.")
    return [loaded.preprocessing.video(source) for source in sources]


def _videos(clips: Sequence[Clip]) -> dict[str, Any]:
    """As a processor takes them. It is told the frames' times, and not to choose from the frames again."""
    if not clips:
        return {}
    options = {"video_metadata": [clip.metadata for clip in clips], "do_sample_frames": False}
    return {"videos": [clip.frames for clip in clips], "videos_kwargs": options}


def _parts(conversations: Sequence[Conversation]) -> list[dict[str, Any]]:
    messages = [message for conversation in conversations for message in conversation]
    return [part for m in messages if not isinstance(m["content"], str) for part in m["content"]]
