"""`coremat run`: one question about one image or video, and what was kept to answer it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coremat.cli import console
from coremat.cli.eval import BUNDLED_MODEL
from coremat.cli.options import Device, Dtype, Frames, MaxPixels, MinPixels, Model, Seed, Square, System
from coremat.errors import UnsupportedError

if TYPE_CHECKING:
    from coremat.generate import Answer


def run(
    file: Annotated[str, typer.Argument(help="An image or a video.")],
    question: Annotated[str, typer.Argument(help="The question about it.")],
    model: Model = BUNDLED_MODEL,
    method: Annotated[
        str, typer.Option(help="A method, with options: core-tokens:tokens=36; ./mine.py:Class runs that file.")
    ] = "corematching",
    overlay: Annotated[Path | None, typer.Option(help="Save the image with the dropped tokens dimmed.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    device: Device = "auto",
    dtype: Dtype = "auto",
    system_prompt: System = "auto",
    square_images: Square = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    frames: Frames = None,
    seed: Seed = 0,
) -> None:
    """Answer one question about an image or a video and say what was kept."""
    from coremat.generate import answering
    from coremat.methods.registry import parse
    from coremat.models.load import load
    from coremat.preprocessing.images import open_medium
    from coremat.preprocessing.prompt_format import preprocessing_of

    parse(method)
    preprocessing = preprocessing_of(model, system_prompt, square_images, min_pixels, max_pixels, frames)
    medium = open_medium(file, preprocessing)
    if overlay is not None and medium["type"] == "video":
        raise UnsupportedError(f"--overlay draws on one square image, and {file!r} is a video.")
    loaded = load(model, device, dtype, preprocessing)
    chosen = parse(method, prune_layer=loaded.prune_layer, seed=seed)
    content = [medium, {"type": "text", "text": question}]
    generation = {"max_new_tokens": max_new_tokens, "do_sample": False}
    with answering(loaded, chosen) as answer:
        [reply] = answer([[{"role": "user", "content": content}]], generation)
    print(reply.text)
    for line in _kept(reply, method):
        console.log(line)
    if overlay is not None:
        from coremat.overlay import save_overlay

        save_overlay(loaded, medium["image"], reply.stats.kept, overlay)
        console.log(f"overlay: {overlay}")


def _kept(reply: "Answer", method: str) -> list[str]:
    stats, decode = reply.stats, reply.decode_seconds_per_token
    layers = stats.neurons_kept
    step = "" if decode is None else f", decode {decode * 1000:.1f} ms per token"
    return [
        f"{method}: {stats.image_tokens_kept} of {stats.image_tokens} image tokens, "
        f"{sum(layers) / len(layers):.0f} of {stats.neurons} neurons per layer kept",
        f"first token after {reply.first_token_seconds * 1000:.1f} ms "
        f"(selection {stats.selection_seconds * 1000:.1f} ms){step}, "
        f"KV cache {stats.kv_bytes / 2**20:.3g} MiB after {stats.prompt_tokens} prompt tokens",
    ]
