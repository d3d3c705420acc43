"""Options that several commands share."""

from typing import Annotated

import typer

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
