"""What a finished training leaves to be shipped: weights in bfloat16, their checksums, the curve, and the card."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from coremat.models.known import LANGUAGE_MODEL_PACKAGE, SMOL
from coremat.models.smol_llava.assemble import ADAPTER, digest, language_model_folder, put_together
from coremat.models.smol_llava.cache import CHECKSUMS, checksums
from coremat.results.plots.eval import plot_training_curve

CURVE = "curve.csv"
CARD = Path(__file__).parent / "card.md"
TRAINED_SHARES = {"named": "patches named", "placed": "patches placed", "right": "answer tokens"}
TRAINED = ("stage", "step", "cpu_seconds", "loss", *TRAINED_SHARES)

Rows = Sequence[Mapping[str, str]]


def export(trained: Mapping[str, torch.Tensor], folder: Path, rows: Rows, plan: Mapping[str, Any]) -> None:
    """Into `folder`/shipped, to be copied to coremat/models/smol_llava.

    rows: of the curve. plan: sizes of the run, for the card.
    """
    shipped = folder / "shipped"
    shipped.mkdir(exist_ok=True)
    save_file({name: w.detach().to(torch.bfloat16).contiguous() for name, w in trained.items()}, shipped / ADAPTER)
    (shipped / ADAPTER).chmod(0o644)
    text = LlamaForCausalLM.from_pretrained(language_model_folder(), dtype=torch.bfloat16)
    known = {**checksums(), SMOL: digest(put_together(text, load_file(shipped / ADAPTER)).state_dict())}
    (shipped / CHECKSUMS.name).write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    shutil.copy(folder / CURVE, shipped / CURVE)
    draw_curve(rows, shipped / "curve.png")
    (shipped / "README.md").write_text(card(rows, plan), encoding="utf-8")


def draw_curve(rows: Rows, path: Path) -> None:
    """Losses and shares of both stages, and the validation's by kind of question."""
    numbers = [
        {name: value if name == "stage" else float(value) for name, value in row.items() if value} for row in rows
    ]
    plot_training_curve(
        numbers,
        path,
        title="Training of smol-llava",
        losses={"loss": "loss"},
        shares=TRAINED_SHARES,
        validated={kind: kind for kind in _kinds(rows)},
    )


def _kinds(rows: Rows) -> list[str]:
    """Those of which the last validation had questions."""
    return [name for name, value in rows[-1].items() if value and name not in TRAINED]


def card(rows: Rows, plan: Mapping[str, Any]) -> str:
    """README.md of the shipped folder, with the figures of this run."""
    ends = {row["stage"]: float(row["cpu_seconds"]) / 60 for row in rows}
    tower, whole = ends["tower"], ends["whole"] - ends["tower"]
    scores = "\n".join(f"| {kind} | {100 * float(rows[-1][kind]):.1f} % |" for kind in _kinds(rows))
    return CARD.read_text(encoding="utf-8").format(
        package=LANGUAGE_MODEL_PACKAGE, tower=tower, whole=whole, scores=scores, **plan
    )
