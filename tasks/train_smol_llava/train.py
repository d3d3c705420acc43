"""Train smol-llava: `python -m coremat.tasks.train_smol_llava.train --output DIR`.

Two stages. `tower`: the tower of shapes-llava learns to tell where things are beside what they are. `whole`: questions
on images, packed, through the frozen language model; low-rank updates of its attention, the tower and the projector
learn. Scenes grow from one object to four. Seeded and checkpointed: killed and started again, it goes on where it
stopped. Times are processor seconds of all threads, so that what else runs does not count.
"""

import csv
import os
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn
from transformers import AutoTokenizer, LlamaForCausalLM

from coremat.models.smol_llava.assemble import language_model_folder, llava_config
from coremat.tasks.bundled.shapes.generator import KINDS
from coremat.tasks.train_shapes_llava.data import EasyVQA, Example, pixel_tensor
from coremat.tasks.train_shapes_llava.naming import PatchNamer
from coremat.tasks.train_shapes_llava.packing import Packer, answer_loss, answered, image_features, tower_features
from coremat.tasks.train_smol_llava.architecture import CHAT, PatchPlacer, build_model, start_projector, trained
from coremat.tasks.train_smol_llava.data import objects_at, training_example, validation_examples
from coremat.tasks.train_smol_llava.export import CURVE, export

LOG_EVERY = 5
BATCH = 4  # images, in validation
SCORED = ("easyvqa", *KINDS)
STAGES = ("tower", "whole")


@dataclass(frozen=True)
class Plan:
    """Sizes of a run. The defaults are those of the released weights."""

    tower_steps: int = 600
    tower_images: int = 32
    tower_first_rate: float = 1e-3
    steps: int = 1600
    images: int = 4
    questions: int = 16
    rank: int = 32
    update_rate: float = 1e-3
    projector_rate: float = 5e-4
    tower_rate: float = 2e-4
    warmup: int = 30
    constant_until: float = 0.6  # share of the steps of a stage
    last_rate: float = 0.03  # share of the peak
    easy_share: float = 0.2
    place: float = 1.0  # weight of the words of row and column where the projector begins
    start_images: int = 600
    checkpoint_every: int = 25
    validate_every: int = 200
    scenes: int = 40  # of the validation split
    held_out: int = 20  # images of easy-VQA
    seed: int = 0


def rate_share(step: int, steps: int, plan: Plan) -> float:
    """Of the peak rate: linear warm-up, constant, then linear down."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    left = (steps - step) / (steps * (1 - plan.constant_until))
    return min(1.0, plan.last_rate + (1 - plan.last_rate) * left)


class Curve:
    """The log, a CSV file of one row every few steps. A resumed run drops what it will do again."""

    COLUMNS = ("stage", "step", "cpu_seconds", "loss", "named", "placed", "right", *SCORED)

    def __init__(self, path: Path, stage: str, done: int) -> None:
        self.path = path
        rows = [row for row in self.rows() if _is_done(row, stage, done)] if path.exists() else []
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    def rows(self) -> list[dict[str, str]]:
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def add(self, row: dict[str, str | float]) -> None:
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.COLUMNS).writerow(row)
        print(row, flush=True)


def _is_done(row: dict[str, str], stage: str, done: int) -> bool:
    return STAGES.index(row["stage"]) < STAGES.index(stage) or (row["stage"] == stage and int(row["step"]) <= done)


class Training:
    """The state of a run, its two stages, and its checkpoint."""

    def __init__(self, plan: Plan, output: Path) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.output = plan, output
        self.easy = EasyVQA()
        folder = language_model_folder()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        config = llava_config()
        self.model = build_model(config, LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16), plan.rank)
        self.trained = trained(self.model)
        self.pack = Packer(self.tokenizer, CHAT, config.image_seq_length, config.image_token_id, plan.questions)
        hidden = config.vision_config.hidden_size
        self.namer, self.placer = PatchNamer(), PatchPlacer(hidden)
        self.heads = nn.ModuleList([self.namer, self.placer])
        self.stage, self.step, self.seconds = "tower", 0, 0.0
        self.optimizer = self._optimizer()
        self.recent: list[dict[str, float]] = []

    def _optimizer(self) -> torch.optim.Optimizer:
        """A group for each peak rate."""
        plan, groups = self.plan, defaultdict(list)
        if self.stage == "tower":
            groups[plan.tower_first_rate] = [*self.model.model.vision_tower.parameters(), *self.heads.parameters()]
        else:
            rates = {"vision_tower": plan.tower_rate, "multi_modal_projector": plan.projector_rate}
            for name, weight in self.trained.items():
                groups[rates.get(name.split(".")[1], plan.update_rate)].append(weight)
        return torch.optim.AdamW(
            [{"params": weights, "peak": rate} for rate, weights in groups.items()],
            lr=0.0,
            weight_decay=0.0,
            betas=(0.9, 0.98),
        )

    def run(self) -> None:
        """To the last step, and what is shipped with its card into `output`."""
        self._resume()
        self.curve = Curve(self.output / CURVE, self.stage, self.step)
        if self.stage == "tower":
            self._run_stage(self.plan.tower_steps)
            self._begin_whole()
        self._run_stage(self.plan.steps)
        export(self.trained, self.output, self.curve.rows(), asdict(self.plan))

    def _run_stage(self, steps: int) -> None:
        while self.step < steps:
            self._take_step(steps)

    def _begin_whole(self) -> None:
        self._start_projector()
        self.stage, self.step = "whole", 0
        self.optimizer = self._optimizer()
        self._save_checkpoint()

    def _start_projector(self) -> None:
        plan = self.plan
        numbers = ((plan.seed + 2, n) for n in range(plan.start_images))
        examples = [training_example(number, self.easy, plan.easy_share, (1, 4), 1) for number in numbers]
        fit = start_projector(self.model, self.tokenizer, examples, plan.place)
        print(f"projector: R2 {fit:.3f} on patches of objects", flush=True)

    def _batch(self) -> list[Example]:
        """Every image is new; the two stages draw from different seeds."""
        plan = self.plan
        if self.stage == "tower":
            seed, size, objects, asked = plan.seed + 1, plan.tower_images, (1, 4), 1
        else:
            seed, size, objects, asked = plan.seed, plan.images, objects_at(self.step / plan.steps), plan.questions
        numbers = range(self.step * size, (self.step + 1) * size)
        return [training_example((seed, n), self.easy, plan.easy_share, objects, asked) for n in numbers]

    def loss(self, batch: list[Example]) -> tuple[torch.Tensor, dict[str, float]]:
        pixels = pixel_tensor(batch)
        if self.stage == "whole":
            loss, right = answer_loss(self.model, image_features(self.model, pixels), self.pack(batch))
            return loss, {"right": right}
        with torch.autocast("cpu", torch.bfloat16):
            features = tower_features(self.model, pixels)
            naming, named = self.namer.loss(features, batch)
            placing, placed = self.placer.loss(features, batch)
        return naming + placing, {"named": named, "placed": placed}

    def _take_step(self, steps: int) -> None:
        started, plan = time.process_time(), self.plan
        loss, figures = self.loss(self._batch())
        self._update(loss, rate_share(self.step, steps, plan))
        self.recent.append({"loss": loss.item(), **figures})
        self.step += 1
        self.seconds += time.process_time() - started
        last, whole = self.step == steps, self.stage == "whole"
        if last or self.step % LOG_EVERY == 0:
            self._log(self.validate() if whole and (last or self.step % plan.validate_every == 0) else {})
        if last or self.step % plan.checkpoint_every == 0:
            self._save_checkpoint()

    def _update(self, loss: torch.Tensor, share: float) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_([w for group in self.optimizer.param_groups for w in group["params"]], 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _log(self, scores: dict[str, float]) -> None:
        means = {name: sum(row[name] for row in self.recent) / len(self.recent) for name in self.recent[0]}
        numbers = {"cpu_seconds": self.seconds, **means, **scores}
        rounded = {name: round(value, 4) for name, value in numbers.items()}
        self.curve.add({"stage": self.stage, "step": self.step, **rounded})
        self.recent.clear()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The share of questions answered right, by kind; easy-VQA's is a kind of its own."""
        right = defaultdict(list)
        examples = list(validation_examples(self.easy, self.plan.scenes, self.plan.held_out))
        for start in range(0, len(examples), BATCH):
            batch = examples[start : start + BATCH]
            features = image_features(self.model, pixel_tensor(batch))
            for example, marks in zip(batch, answered(self.model, features, self.pack(batch)), strict=True):
                for question, mark in zip(example.questions, marks, strict=False):
                    right[question.kind].append(mark)
        return {kind: sum(marks) / len(marks) for kind, marks in right.items()}

    def _save_checkpoint(self) -> None:
        state = {
            "stage": self.stage,
            "step": self.step,
            "seconds": self.seconds,
            "heads": self.heads.state_dict(),
            "trained": {name: weight.detach() for name, weight in self.trained.items()},
            "optimizer": self.optimizer.state_dict(),
            "recent": self.recent,
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
        self.recent = state["recent"]
        with torch.no_grad():
            for name, weight in self.trained.items():
                weight.copy_(state["trained"][name])
        self.heads.load_state_dict(state["heads"])
        self.optimizer = self._optimizer()
        self.optimizer.load_state_dict(state["optimizer"])


def main(
    output: Annotated[Path, typer.Option(help="Folder for the curve, the checkpoint and what is shipped.")],
    tower_steps: int = Plan.tower_steps,
    tower_images: int = Plan.tower_images,
    tower_first_rate: float = Plan.tower_first_rate,
    steps: int = Plan.steps,
    images: int = Plan.images,
    questions: int = Plan.questions,
    rank: int = Plan.rank,
    update_rate: float = Plan.update_rate,
    projector_rate: float = Plan.projector_rate,
    tower_rate: float = Plan.tower_rate,
    warmup: int = Plan.warmup,
    constant_until: float = Plan.constant_until,
    last_rate: float = Plan.last_rate,
    easy_share: float = Plan.easy_share,
    place: float = Plan.place,
    start_images: int = Plan.start_images,
    checkpoint_every: int = Plan.checkpoint_every,
    validate_every: int = Plan.validate_every,
    scenes: int = Plan.scenes,
    held_out: int = Plan.held_out,
    seed: int = Plan.seed,
) -> None:
    """Train what makes smol-llava of SmolLM2; stopped and started again, it goes on."""
    given = {name: value for name, value in locals().items() if name != "output"}
    output.mkdir(parents=True, exist_ok=True)
    Training(Plan(**given), output).run()


if __name__ == "__main__":
    typer.run(main)
