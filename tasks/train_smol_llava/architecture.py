"""smol-llava before its training: SmolLM2, the tower of shapes-llava, and a projector that a regression begins.

The language model is frozen, in bfloat16; low-rank updates of its attention, the tower and the projector are trained
in float32.
"""

import math
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from coremat.models.known import bundled_folder
from coremat.tasks.bundled.shapes.generator import COLUMNS, IMAGE_SIZE, ROWS
from coremat.tasks.train_shapes_llava.architecture import PATCH, ChatFormat
from coremat.tasks.train_shapes_llava.data import COLOR_LABELS, SHAPE_LABELS, Example, pixel_tensor
from coremat.tasks.train_shapes_llava.naming import GROUND_WEIGHT
from coremat.tasks.train_shapes_llava.packing import tower_features

CHAT = ChatFormat(
    "<|im_start|>user\n", "\n{question}<|im_end|>\n<|im_start|>assistant\n", "{answer}"
)  # what chat_template.jinja of smol_llava says
UPDATED = ("q_proj", "k_proj", "v_proj", "o_proj")
OBJECT_WEIGHT = 10.0  # of a patch on an object, in the regression; the ground is three in four
RIDGE = 1e-3  # of the mean square of the activations


class LowRank(nn.Module):
    """A frozen matrix [O, I] plus the product of two trained ones, [O, R] and [R, I]; the product begins at 0."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / math.sqrt(base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))


def build_model(config: LlavaConfig, text: LlamaForCausalLM, rank: int) -> LlavaForConditionalGeneration:
    """The parts put together; only what is to be trained has gradients. The projector is torch's random one."""
    model = LlavaForConditionalGeneration(config)
    bundled = LlavaForConditionalGeneration.from_pretrained(bundled_folder(), dtype=torch.float32)
    model.model.vision_tower.load_state_dict(bundled.model.vision_tower.state_dict())
    model.model.language_model = text.model.requires_grad_(False)
    model.lm_head = text.lm_head.requires_grad_(False)
    model.tie_weights()
    for layer in text.model.layers:
        for name in UPDATED:
            setattr(layer.self_attn, name, LowRank(getattr(layer.self_attn, name), rank))
    return model


def trained(model: LlavaForConditionalGeneration) -> dict[str, nn.Parameter]:
    """By name, what is trained: together it is what is shipped."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


# --- where the tower begins --------------------------------------------------------------------------------------


class PatchPlacer(nn.Module):
    """Row and column, of three each, of what covers a patch: the tower of shapes-llava leaves them to its decoder.

    Features [B, 144, D]. Without them SmolLM2 would know of places by its rotary embedding alone, in one dimension.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.row, self.column = nn.Linear(hidden, len(ROWS)), nn.Linear(hidden, len(COLUMNS))

    def loss(self, features: torch.Tensor, batch: list[Example]) -> tuple[torch.Tensor, float]:
        """Cross entropy with the ground weighted down, and the share of object patches placed right."""
        rows, columns = patch_cells()
        on_object = torch.from_numpy(np.stack([e.labels[0] for e in batch])) > 0
        weight = torch.where(on_object, 1.0, GROUND_WEIGHT)
        loss, right = torch.zeros(()), on_object
        for head, cells in ((self.row, rows), (self.column, columns)):
            logits = head(features).float()
            each = F.cross_entropy(logits.transpose(1, 2), cells.expand(len(batch), -1), reduction="none")
            loss = loss + (each * weight).sum() / weight.sum()
            right = right & (logits.argmax(-1) == cells)
        return loss, float(right.sum() / on_object.sum())


def patch_cells() -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of the scene's 3 x 3 cells, int64 [144] each, that every patch is in."""
    side = IMAGE_SIZE // PATCH
    cell = torch.arange(side) // (side // len(ROWS))
    return cell.repeat_interleave(side), cell.repeat(side)


# --- where the projector begins -----------------------------------------------------------------------------------


def start_projector(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, examples: Iterable[Example], place: float
) -> float:
    """First layer random, scaled to its inputs; second by ridge regression from its activations to `patch_targets`.

    place: weight of the words of row and column in the target. Returns R2 over patches on objects.
    """
    projector, batch = model.model.multi_modal_projector, list(examples)
    with torch.no_grad():
        features, target = (
            tower_features(model, pixel_tensor(batch)).flatten(0, 1),
            patch_targets(model, tokenizer, batch, place),
        )
        _scale_first_layer(projector.linear_1, features)
        activations = projector.act(projector.linear_1(features))
        on_object = torch.tensor(np.concatenate([e.labels[0] > 0 for e in batch]))
        weight = torch.where(on_object, OBJECT_WEIGHT, 1.0)
        matrix = ridge(activations, target, weight)
        projector.linear_2.weight.copy_(matrix[:-1].T)
        projector.linear_2.bias.copy_(matrix[-1])
        rest = (projector.linear_2(activations) - target)[on_object]
        spread = target[on_object] - target[on_object].mean(0)
    return 1.0 - float(rest.square().sum() / spread.square().sum())


def _scale_first_layer(layer: nn.Linear, features: torch.Tensor) -> None:
    """Outputs of mean 0 and deviation about 1, whatever the features' own [N, I]."""
    mean, deviation = features.mean(0), features.std(0) + 1e-3
    layer.weight.copy_(torch.randn_like(layer.weight) / math.sqrt(layer.in_features) / deviation)
    layer.bias.copy_(-layer.weight @ mean + 0.5 * torch.randn_like(layer.bias))


def ridge(inputs: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The matrix [I + 1, O] that takes inputs [N, I] and a one to the target [N, O]; weight [N] of each row."""
    x = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1).double()
    gram = x.T @ (x * weight[:, None].double())
    penalty = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    return torch.linalg.solve(gram + penalty, x.T @ (target.double() * weight[:, None])).to(inputs.dtype)


def patch_targets(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, batch: list[Example], place: float
) -> torch.Tensor:
    """Per patch [N, H]: embeddings of its object's colour and shape (or text), and of its row and column, summed."""
    word = _Words(model.get_input_embeddings().weight, tokenizer)
    colors = torch.stack([word(name) for name in COLOR_LABELS])
    shapes = torch.stack([torch.zeros_like(colors[0]), *(word(name) for name in SHAPE_LABELS[1:])])
    places = torch.stack([word(ROWS[row]) + word(COLUMNS[column]) for row, column in zip(*patch_cells(), strict=True)])
    targets = []
    for example in batch:
        color, shape = (torch.from_numpy(labels).clamp(min=0) for labels in example.labels)
        targets.append(colors[color] + shapes[shape] + place * places * (color > 0)[:, None])
    return torch.cat(targets)


class _Words:
    """The mean embedding [H] of a word's tokens, as within a sentence."""

    def __init__(self, embeddings: torch.Tensor, tokenizer: PreTrainedTokenizerFast) -> None:
        self.embeddings, self.tokenizer = embeddings, tokenizer

    def __call__(self, word: str) -> torch.Tensor:
        ids = self.tokenizer(" " + word, add_special_tokens=False)["input_ids"]
        return self.embeddings[ids].float().mean(0)
