"""Questions of one image packed into one sequence, and their loss.

The questions of one image share its tokens: one sequence, in which each question sees the image and
itself only, at the positions it would have alone, so training on eight is training on each.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from coremat.tasks.train_shapes_llava.architecture import ChatFormat
from coremat.tasks.train_shapes_llava.data import Example

IGNORE = -100


@dataclass(frozen=True)
class Packed:
    """A batch of sequences: prefix, image, then the questions.

    All int64 [B, S]. `segment` is 0 for what all questions see, -1 for padding.
    """

    ids: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    segment: torch.Tensor

    def mask(self) -> torch.Tensor:
        """bool [B, 1, S, S]: causal, and within one question or back to the shared part."""
        seg = self.segment
        causal = torch.ones(seg.shape[1], seg.shape[1], dtype=torch.bool).tril()
        seen = (seg[:, None, :] == 0) | (seg[:, None, :] == seg[:, :, None])
        return (seen & causal)[:, None]


class Packer:
    """Turns examples into `Packed`; remembers how each text is cut into tokens."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, chat: ChatFormat, image_tokens: int, image_id: int, questions: int
    ) -> None:
        self.tokenizer, self.chat = tokenizer, chat
        self.prefix = [*self._ids(chat.before), *[image_id] * image_tokens]
        self.questions = questions
        self._known: dict[str, list[int]] = {}

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def ids(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._ids(text)
        return self._known[text]

    def sequence(self, example: Example) -> tuple[list[int], list[int], list[int], list[int]]:
        ids, targets = list(self.prefix), [IGNORE] * len(self.prefix)
        positions, segment = list(range(len(ids))), [0] * len(ids)
        for number, question in enumerate(example.questions[: self.questions], start=1):
            ask = self.ids(self.chat.question.format(question=question.question))
            answer = [*self.ids(self.chat.answer.format(answer=question.answer)), self.tokenizer.eos_token_id]
            fed = ask + answer[:-1]
            ids += fed
            targets += [IGNORE] * (len(ask) - 1) + answer
            positions += range(len(self.prefix), len(self.prefix) + len(fed))
            segment += [number] * len(fed)
        return ids, targets, positions, segment

    def __call__(self, batch: list[Example], multiple: int = 16) -> Packed:
        rows = [self.sequence(e) for e in batch]
        longest = max(len(r[0]) for r in rows)
        size = -(-longest // multiple) * multiple
        fills = (self.tokenizer.pad_token_id, IGNORE, 0, -1)
        columns = [torch.tensor([r[k] + [fills[k]] * (size - len(r[k])) for r in rows]) for k in range(4)]
        return Packed(*columns)


def image_features(model: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Projected image tokens [B, 144, H]."""
    return model.model.multi_modal_projector(tower_features(model, pixels))


def tower_features(model: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Of the tower's last layer, without its class token: [B, 144, D]."""
    return model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]


def answer_logits(model: LlavaForConditionalGeneration, features: torch.Tensor, packed: Packed) -> torch.Tensor:
    """Logits float32 [N, V] of the answer tokens, in the order of `packed.targets`."""
    embeds = model.get_input_embeddings()(packed.ids)
    where = packed.ids == model.config.image_token_id
    embeds = embeds.masked_scatter(where[..., None], features.to(embeds.dtype))
    hidden = model.model.language_model(
        inputs_embeds=embeds, attention_mask=packed.mask(), position_ids=packed.positions, use_cache=False
    ).last_hidden_state
    return model.lm_head(hidden[packed.targets != IGNORE]).float()


def answer_loss(
    model: LlavaForConditionalGeneration, features: torch.Tensor, packed: Packed
) -> tuple[torch.Tensor, float]:
    """Cross entropy over answer tokens, and the share of answer tokens that are right."""
    logits, target = answer_logits(model, features, packed), packed.targets[packed.targets != IGNORE]
    return F.cross_entropy(logits, target), float((logits.argmax(-1) == target).float().mean())


def answered(model: LlavaForConditionalGeneration, features: torch.Tensor, packed: Packed) -> list[list[bool]]:
    """Of each example's questions, whether greedy decoding would spell the answer: every token of it comes first."""
    asked = packed.targets != IGNORE
    right = torch.ones_like(asked)
    right[asked] = answer_logits(model, features, packed).argmax(-1) == packed.targets[asked]
    rows = zip(right, packed.segment, strict=True)
    return [[bool(row[segment == n].all()) for n in range(1, int(segment.max()) + 1)] for row, segment in rows]
