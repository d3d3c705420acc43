"""Options that several commands share."""

from typing import Annotated

import typer

Model = Annotated[str, typer.Option("--model", "-m", help="A name (coremat list models), a folder, or a hub id.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16; auto is float32 on a CPU.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn at random.")]
