"""Options that several commands share, and lists of names as they are typed."""

from pathlib import Path
from typing import Annotated

import typer

from coremat.errors import ConfigError

Model = Annotated[str, typer.Option("--model", "-m", help="A name (coremat list models), a folder, or a hub id.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16; auto is float32 on a CPU.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn at random.")]
System = Annotated[
    str, typer.Option("--system-prompt", help="auto (as the model was evaluated), none, vicuna, a sentence.")
]
Square = Annotated[
    bool | None,
    typer.Option("--square-images/--own-image-shape", help="Pad images to a square, or not; as evaluated by default."),
]
MinPixels = Annotated[int | None, typer.Option(help="Of an image, for models with dynamic resolution.")]
MaxPixels = Annotated[int | None, typer.Option(help="Of an image, for models with dynamic resolution.")]
Frames = Annotated[int | None, typer.Option(min=1, help="Taken of a video, at equal distances; 8 by default.")]
DataRoot = Annotated[Path, typer.Option(help="A folder of datasets, laid out as on the hub: DIR/<hub id>/...")]


def names(option: str, text: str) -> list[str]:
    """Names divided by commas, each once. ConfigError for none."""
    found = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not found:
        raise ConfigError(f"--{option} is {text!r}; accepted: at least one name.")
    return found
