"""How near a method's next-token distributions are to the dense model's, position by position of the dense answer.

The dense model answers a prompt greedily. Every method is then made to follow that answer (teacher forcing) through the
decode path that it would really take: its own prefill, its own cache, its own decode steps. At each position it has
read the same prompt and the same tokens as the dense model, so that the two distributions can be compared:

    KL(dense || method)     in nats, over the whole vocabulary, in float64
    agreement               whether both hold the same token for the most probable one
    NLL                     of the dense token under the method, in nats
    first difference        the position at which the method, decoding by itself, would leave the dense answer

    found = coremat.fidelity.measure(model, inputs, ["core-neurons", "griffin"], new_tokens=64)
    found["griffin"].kl.mean()

This is the KL test that llama.cpp's `perplexity` makes of quantised models, on answers in place of a running text.
Position 0 is predicted by the prefill, every later one by a decode step.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import LogitsProcessor, LogitsProcessorList

from coremat.errors import ConfigError, DataError
from coremat.methods import registry
from coremat.methods.base import Method
from coremat.methods.dense import Dense
from coremat.runtime.session import Session, apply
from coremat.runtime.stats import SequenceStats

AT_ONCE = 16  # positions whose distributions are in float64 at one time

Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class DenseAnswer:
    """tokens: int64 [T], with the end token where there is one; logits: float32 [T, V], on the host. limit: new tokens
    that were allowed, which `follow` allows too."""

    tokens: torch.Tensor
    logits: torch.Tensor
    limit: int

    @property
    def bytes(self) -> int:
        return self.logits.numel() * self.logits.element_size()


@dataclass(frozen=True)
class Distances:
    """Of T positions, on the host. kl, nll: float64 [T] in nats; agree: bool [T]."""

    kl: torch.Tensor
    agree: torch.Tensor
    nll: torch.Tensor


@dataclass(frozen=True)
class Fidelity(Distances):
    """One method on one dense answer. free: int64 [T], the token that greedy decoding would have taken at each
    position; first_difference: the first one that is not the dense answer's, None where it never leaves it."""

    free: torch.Tensor
    first_difference: int | None
    stats: SequenceStats


def measure(
    model: nn.Module,
    inputs: Inputs,
    methods: Iterable[Method | str],
    new_tokens: int = 64,
    question: str | None = None,
) -> dict[str, Fidelity]:
    """By the name of each method as it was given (of an object its label), how it follows the dense answer to one
    prompt.

    model: a Hugging Face model; inputs: of its `generate`, one row. question: for methods that read it as text.
    ConfigError for another number of rows or a method given twice, DataError for an answer without a token or logits
    that are not finite, and what `apply` raises.
    """
    given = list(methods)
    names = [method if isinstance(method, str) else method.label for method in given]
    if len(set(names)) < len(names):
        raise ConfigError(f"methods are {', '.join(names)}; accepted: each once.")
    with apply(model, Dense()) as session:
        answer = dense_answer(session, inputs, new_tokens)
    found = {}
    for name, method in zip(names, given, strict=True):
        with apply(model, registry.method(method)) as session:
            found[name] = follow(session, inputs, answer, question)
    return found


# --- answering and following ------------------------------------------------------------------------------------------


def dense_answer(session: Session, inputs: Inputs, new_tokens: int) -> DenseAnswer:
    """The greedy answer to one prompt. session: of `apply(model, Dense())`, so that a method's cache is like this one.

    DataError where it ends before it has begun, or has logits that are not finite.
    """
    if new_tokens < 1:
        raise ConfigError(f"new_tokens is {new_tokens}; accepted: at least 1.")
    output = _generate(session, inputs, new_tokens)
    logits = torch.cat(output.logits)
    tokens = output.sequences[0, -len(logits) :]
    if is_empty(session, tokens):
        raise DataError("the dense model's answer is empty: its first token ends it")
    _check_finite(logits)
    return DenseAnswer(tokens.cpu(), logits.cpu(), new_tokens)


def is_empty(session: Session, tokens: torch.Tensor) -> bool:
    """Whether the first token of an answer ends it."""
    ends = session.adapter.model.generation_config.eos_token_id
    return ends is not None and int(tokens[0]) in ([ends] if isinstance(ends, int) else ends)


def follow(session: Session, inputs: Inputs, answer: DenseAnswer, question: str | None = None) -> Fidelity:
    """What the session's method makes of the dense answer to the same prompt, in the decode path of the method."""
    session.questions = None if question is None else [question]
    forced = Forced(answer.tokens)
    output = _generate(session, inputs, answer.limit, forced)
    distances = compare(answer.logits, torch.cat(output.logits), answer.tokens)
    free = torch.cat(forced.free).cpu()
    different = (free != answer.tokens).nonzero()
    first = int(different[0]) if len(different) else None
    return Fidelity(**vars(distances), free=free, first_difference=first, stats=session.stats[0])


class Forced(LogitsProcessor):
    """Makes `generate` take the tokens of an answer, and keeps those that it would have taken: it comes last, so these
    are what the model's own generation settings (a repetition penalty, say) let it choose."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens, self.free = tokens, list[torch.Tensor]()

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        token = self.tokens[len(self.free)]
        self.free.append(scores.argmax(-1))
        forced: Any = torch.full_like(scores, -torch.inf)  # another tensor: `generate` keeps the one that it gave
        forced[:, token] = 0
        return forced


def _generate(session: Session, inputs: Inputs, new_tokens: int, forced: Forced | None = None) -> Any:
    rows = len(inputs["input_ids"])
    if rows != 1:
        raise ConfigError(f"the inputs have {rows} rows; accepted: one prompt at a time.")
    with torch.inference_mode():
        return session.adapter.model.generate(
            **inputs,
            max_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            logits_processor=LogitsProcessorList([forced] if forced else []),
            output_logits=True,
            return_dict_in_generate=True,
        )


# --- distances --------------------------------------------------------------------------------------------------------


def compare(dense: torch.Tensor, other: torch.Tensor, tokens: torch.Tensor) -> Distances:
    """dense, other: logits [T, V] of the same positions, on any device; tokens: int64 [T], the dense answer's.

    DataError where `other` has a logit that is not a number, or is infinite where `dense` is not.
    """
    _check_finite(other, like=dense)
    parts = [
        _compared(a.to(other.device, torch.float64), b.double(), chosen.to(other.device))
        for a, b, chosen in zip(*(one.split(AT_ONCE) for one in (dense, other, tokens)), strict=True)
    ]
    kl, agree, nll = (torch.cat(one).cpu() for one in zip(*parts, strict=True))
    return Distances(kl, agree, nll)


def _compared(
    dense: torch.Tensor, other: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    log_p, log_q = dense.log_softmax(-1), other.log_softmax(-1)
    terms = torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_q))  # 0 log 0 is 0
    kl = terms.sum(-1).clamp(min=0)  # rounding may leave a little less than nothing
    nll = -log_q.gather(1, tokens[:, None])[:, 0]
    return kl, dense.argmax(-1) == other.argmax(-1), nll


def _check_finite(logits: torch.Tensor, like: torch.Tensor | None = None) -> None:
    """Some models hide tokens of their vocabulary by -inf: those that both hide are no fault."""
    hidden = logits.isneginf() if like is None else like.to(logits.device).isneginf()
    wrong = (~logits.isfinite() & ~hidden).any(-1) | hidden.all(-1)
    if wrong.any():
        raise DataError(f"the logits at position {int(wrong.nonzero()[0])} of the answer are not finite")
