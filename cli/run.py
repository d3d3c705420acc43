"""`coremat run`: one question, about an image or a video or of text alone, and what was kept to answer it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coremat.cli import console
from coremat.cli.eval import BUNDLED_MODEL
from coremat.cli.options import Device, Dtype, Frames, MaxPixels, MinPixels, Model, Seed, Square, System
from coremat.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from coremat.generate import Answer
    from coremat.preprocessing.prompt_format import Preprocessing

METHOD, TEXT_METHOD = "corematching", "core-neurons"


def run(
    file: Annotated[str | None, typer.Argument(help="An image or a video.", show_default=False)] = None,
    question: Annotated[str | None, typer.Argument(help="The question about it.", show_default=False)] = None,
    text: Annotated[
        str | None, typer.Option(help="In their place a question of text alone, to a model of text alone.")
    ] = None,
    model: Model = BUNDLED_MODEL,
    method: Annotated[
        str | None,
        typer.Option(
            help="A method, with options: core-tokens:tokens=36; ./mine.py:Class runs that file.",
            show_default=f"{METHOD}; {TEXT_METHOD} with --text",
        ),
    ] = None,
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
    """Answer one question, about an image or a video or of text alone, and say what was kept."""
    spec = method or (METHOD if text is None else TEXT_METHOD)
    _check_asked(file, question, text, overlay)
    from coremat.generate import answering
    from coremat.methods.registry import parse
    from coremat.models.load import load
    from coremat.preprocessing.prompt_format import preprocessing_of

    parse(spec)
    preprocessing = preprocessing_of(model, system_prompt, square_images, min_pixels, max_pixels, frames)
    content = [] if file is None else [_medium(file, preprocessing, overlay)]
    _check_model(model, file)
    loaded = load(model, device, dtype, preprocessing)
    chosen = parse(spec, prune_layer=loaded.prune_layer, seed=seed)
    content += [{"type": "text", "text": question or text}]
    generation = {"max_new_tokens": max_new_tokens, "do_sample": False}
    with answering(loaded, chosen) as answer:
        [reply] = answer([[{"role": "user", "content": content}]], generation)
    print(reply.text)
    for line in _kept(reply, spec):
        console.log(line)
    if overlay is not None:
        from coremat.overlay import save_overlay

        save_overlay(loaded, content[0]["image"], reply.stats.kept, overlay)
        console.log(f"overlay: {overlay}")


def _check_asked(file: str | None, question: str | None, text: str | None, overlay: Path | None) -> None:
    """One way of asking, and all of it."""
    if text is not None and file is not None:
        raise ConfigError(f"--text is given beside {file!r}; accepted: FILE and QUESTION, or --text alone.")
    if text is None and question is None:
        lacks = "FILE and QUESTION are" if file is None else "QUESTION is"
        raise ConfigError(f"{lacks} missing; accepted: FILE and QUESTION, or --text alone.")
    if text is not None and not text.strip():
        raise ConfigError(f"--text is {text!r}; accepted: a question.")
    if text is not None and overlay is not None:
        raise ConfigError("--overlay is given beside --text; accepted: with an image.")


def _medium(file: str, preprocessing: "Preprocessing", overlay: Path | None) -> dict[str, Any]:
    from coremat.preprocessing.images import open_medium

    medium = open_medium(file, preprocessing)
    if overlay is not None and medium["type"] == "video":
        raise UnsupportedError(f"--overlay draws on one square image, and {file!r} is a video.")
    return medium


def _check_model(model: str, file: str | None) -> None:
    """UnsupportedError where a model is shown what it cannot see, or asked of nothing that it could; before any of its
    weights is read."""
    from coremat.models.families import check_takes_images, takes_images
    from coremat.models.load import config_of

    config = config_of(model)
    if file is not None:
        check_takes_images(model, config, "--text with a question, or a vision-language model")
    elif takes_images(config):
        raise UnsupportedError(
            f"{model} ({config.model_type}) is a vision-language model, and --text shows it nothing; accepted: "
            "FILE and QUESTION, or --text with a model of text alone."
        )


def _kept(reply: "Answer", method: str) -> list[str]:
    stats, decode = reply.stats, reply.decode_seconds_per_token
    layers = stats.neurons_kept
    step = "" if decode is None else f", decode {decode * 1000:.1f} ms per token"
    images = f"{stats.image_tokens_kept} of {stats.image_tokens} image tokens, " if stats.image_tokens else ""
    return [
        f"{method}: {images}{sum(layers) / len(layers):.0f} of {stats.neurons} neurons per layer kept",
        f"first token after {reply.first_token_seconds * 1000:.1f} ms "
        f"(selection {stats.selection_seconds * 1000:.1f} ms){step}, "
        f"KV cache {stats.kv_bytes / 2**20:.3g} MiB after {stats.prompt_tokens} prompt tokens",
    ]
