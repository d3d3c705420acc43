"""Train the bundled model from scratch: `python -m coremat.tasks.train_shapes_llava.train --output DIR`.

Two stages. `tower`: vision tower and projector alone name what covers each patch. `whole`: everything, on
questions, with that naming kept as an auxiliary loss and scenes that grow from two objects to four.
Checkpointed and seeded: killed and started again, it goes on where it stopped.
"""

import json
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn
from transformers import PreTrainedTokenizerFast

from coremat.results.plots.eval import plot_training_curve
from coremat.tasks.bundled.shapes.generator import make_questions, make_scene
from coremat.tasks.train_shapes_llava.architecture import CHAT, build_model, build_processor, build_tokenizer
from coremat.tasks.train_shapes_llava.data import EasyVQA, Example, examples, pixel_tensor
from coremat.tasks.train_shapes_llava.naming import PatchNamer
from coremat.tasks.train_shapes_llava.packing import Packer, answer_loss, image_features


@dataclass(frozen=True)
class Plan:
    """Sizes of a run. The defaults are those of the released weights."""

    tower_steps: int = 600
    tower_batch: int = 64
    whole_steps: int = 3800
    whole_batch: int = 32
    questions: int = 10
    tower_rate: float = 2e-3
    whole_rate: float = 2e-3
    warmup: int = 50
    easy_share: float = 0.3
    grow_until: float = 0.15  # share of the second stage after which scenes have up to four objects
    auxiliary: float = 0.3
    seed: int = 0


class Optimizers:
    """Muon for the matrices inside the transformers, AdamW for everything else; one rate for both."""

    def __init__(self, modules: list[nn.Module]) -> None:
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for module in modules:
            for name, parameter in module.named_parameters():
                inner = parameter.dim() == 2 and ("layers." in name or "linear_" in name)
                (matrices if inner else rest).append(parameter)
        self.parameters = matrices + rest
        self.all = [
            torch.optim.Muon(matrices, lr=0.0, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=0.0, weight_decay=0.01, betas=(0.9, 0.98)),
        ]

    def step(self, loss: torch.Tensor, rate: float) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> list[dict]:
        return [o.state_dict() for o in self.all]

    def load(self, states: list[dict]) -> None:
        for optimizer, state in zip(self.all, states, strict=True):
            optimizer.load_state_dict(state)


def rate_at(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


class Training:
    """The state of a run, its two stages, and its checkpoint."""

    def __init__(self, plan: Plan, output: Path) -> None:
        random.seed(plan.seed)
        torch.manual_seed(plan.seed)
        self.plan, self.output = plan, output
        self.easy = EasyVQA()
        self.tokenizer = self._tokenizer()
        self.model = build_model(self.tokenizer)
        self.namer = PatchNamer()
        config = self.model.config
        self.pack = Packer(self.tokenizer, CHAT, config.image_seq_length, config.image_token_id, plan.questions)
        self.stage, self.step = "tower", 0
        self.optimizers = self._optimizers()
        self.seconds = 0.0

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        """Built once per run: a resumed run keeps the one it began with, whatever the questions are by then."""
        folder = self.output / "tokenizer"
        if not folder.exists():
            build_tokenizer(self._texts()).save_pretrained(folder)
        return PreTrainedTokenizerFast.from_pretrained(folder)

    def _texts(self) -> list[str]:
        easy = [q.question for questions in self.easy.questions.values() for q in questions]
        scenes = ((make_scene((0, n)), (1, n)) for n in range(500))
        return easy + [q.question for scene, seed in scenes for q in make_questions(scene, seed, 12)]

    def _optimizers(self) -> Optimizers:
        inner = self.model.model
        if self.stage == "tower":
            return Optimizers([inner.vision_tower, inner.multi_modal_projector, self.namer])
        return Optimizers([self.model, self.namer])

    def _batches(self, size: int) -> Iterator[list[Example]]:
        plan = self.plan
        whole = self.stage == "whole"
        while True:
            grown = self.step >= plan.grow_until * plan.whole_steps or not whole
            seed = plan.seed * 2 + whole
            stream = examples(seed, self.step * size, self.easy, plan.easy_share, 4 if grown else 2, plan.questions)
            yield list(islice(stream, size))

    def loss(self, batch: list[Example]) -> tuple[torch.Tensor, dict[str, float]]:
        with torch.autocast("cpu", torch.bfloat16):
            features = image_features(self.model, pixel_tensor(batch))
            naming, named = self.namer.loss(features, batch)
            if self.stage == "tower":
                return naming, {"naming": naming.item(), "named": named}
            answer, right = answer_loss(self.model, features, self.pack(batch))
        figures = {"answer": answer.item(), "right": right, "naming": naming.item(), "named": named}
        return answer + self.plan.auxiliary * naming, figures

    def run(self) -> None:
        self._resume()
        plan = self.plan
        if self.stage == "tower":
            self._run_stage(plan.tower_steps, plan.tower_batch, plan.tower_rate)
            self.stage, self.step = "whole", 0
            self.optimizers = self._optimizers()
            self._save_checkpoint()
        self._run_stage(plan.whole_steps, plan.whole_batch, plan.whole_rate)
        self.export()

    def _run_stage(self, steps: int, size: int, peak: float) -> None:
        self.model.train()
        batches = self._batches(size)
        while self.step < steps:
            started = time.perf_counter()
            loss, figures = self.loss(next(batches))
            self.optimizers.step(loss, rate_at(self.step, steps, peak, self.plan.warmup))
            self.step += 1
            self.seconds += time.perf_counter() - started
            if self.step % 10 == 0 or self.step == steps:
                self._log(figures)
            if self.step % 100 == 0 or self.step == steps:
                self._save_checkpoint()

    def _log(self, figures: dict[str, float]) -> None:
        row = {"stage": self.stage, "step": self.step, "seconds": round(self.seconds, 1)}
        row |= {name: round(value, 4) for name, value in figures.items()}
        with (self.output / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)

    def _save_checkpoint(self) -> None:
        state = {
            "stage": self.stage,
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "namer": self.namer.state_dict(),
            "optimizers": self.optimizers.state(),
        }
        path = self.output / "checkpoint.pt"
        torch.save(state, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)

    def _resume(self) -> None:
        path = self.output / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.stage, self.step, self.seconds = state["stage"], state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.namer.load_state_dict(state["namer"])
        self.optimizers = self._optimizers()
        self.optimizers.load(state["optimizers"])

    def export(self) -> None:
        """Weights in bfloat16, tokenizer and processor, as `from_pretrained` wants them, and the training curve."""
        folder = self.output / "model"
        rows = [json.loads(line) for line in (self.output / "log.jsonl").read_text().splitlines()]
        plot_training_curve(
            rows,
            folder / "curve.png",
            title="Training of shapes-llava",
            losses={"answer": "answer tokens", "naming": "naming of patches"},
            shares={"right": "answer tokens", "named": "patches of objects"},
        )
        self.model.eval().to(torch.bfloat16).save_pretrained(folder)
        build_processor(self.tokenizer).save_pretrained(folder)


def main(
    output: Annotated[Path, typer.Option(help="Folder for the log, the checkpoint and the model.")],
    tower_steps: int = Plan.tower_steps,
    tower_batch: int = Plan.tower_batch,
    whole_steps: int = Plan.whole_steps,
    whole_batch: int = Plan.whole_batch,
    questions: int = Plan.questions,
    tower_rate: float = Plan.tower_rate,
    whole_rate: float = Plan.whole_rate,
    warmup: int = Plan.warmup,
    easy_share: float = Plan.easy_share,
    grow_until: float = Plan.grow_until,
    auxiliary: float = Plan.auxiliary,
    seed: int = Plan.seed,
) -> None:
    """Train the bundled model from scratch; stopped and started again, it goes on."""
    plan = Plan(
        tower_steps=tower_steps,
        tower_batch=tower_batch,
        whole_steps=whole_steps,
        whole_batch=whole_batch,
        questions=questions,
        tower_rate=tower_rate,
        whole_rate=whole_rate,
        warmup=warmup,
        easy_share=easy_share,
        grow_until=grow_until,
        auxiliary=auxiliary,
        seed=seed,
    )
    output.mkdir(parents=True, exist_ok=True)
    Training(plan, output).run()


if __name__ == "__main__":
    typer.run(main)
