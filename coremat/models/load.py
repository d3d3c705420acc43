"""From what a user types (a known name, a hub id, a folder) to a model, its processor and its own defaults."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from coremat.checks import one_of
from coremat.errors import ConfigError, ModelError, UnknownNameError, UnsupportedError
from coremat.fingerprint import fingerprint
from coremat.models.architecture import auto_class, shipped_config
from coremat.models.families import ADAPTERS, adapter_for, takes_images
from coremat.models.known import KNOWN_MODELS, SMOL, SMOL_TEXT, bundled_folder
from coremat.preprocessing.prompt_format import Preprocessing, preprocessing_of

PRUNE_LAYER = 2  # the paper's K; a model's own config may say otherwise
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to answer. `fingerprint` changes with its weights; `prune_layer` is its own default; `processor`:
    of a model of text alone its tokenizer."""

    name: str
    model: Any
    processor: Any
    fingerprint: str
    prune_layer: int
    device: str
    dtype: str
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)


def load(
    name_or_path: str, device: str = "auto", dtype: str = "auto", preprocessing: Preprocessing | None = None
) -> LoadedModel:
    """Load a known name, a folder or a hub id. Raises UnknownNameError, ModelError, UnsupportedError or ConfigError."""
    _quiet()
    preprocessing = preprocessing or preprocessing_of(name_or_path)
    source = _source(name_or_path)
    place, kind = pick_device(device), pick_dtype(dtype)
    config = _supported_config(name_or_path, source)
    model = _model(source, config, place, kind)
    adapter_for(model)  # refuses an unexpected shape now rather than in the first batch
    processor = _processor(source, preprocessing) if takes_images(config) else _tokenizer(source)
    return LoadedModel(
        name=name_or_path,
        model=model,
        processor=processor,
        fingerprint=fingerprint(model),
        prune_layer=own_prune_layer(config),
        device=place,
        dtype=str(model.dtype).removeprefix("torch."),
        preprocessing=preprocessing,
    )


def read_config(name_or_path: str) -> Any:
    """The Hugging Face config of what `load` would load. UnsupportedError for a family without an adapter."""
    _quiet()
    return _supported_config(name_or_path, _source(name_or_path))


def _supported_config(name_or_path: str, source: str) -> Any:
    config = _config(source)
    if config.model_type not in ADAPTERS:
        raise UnsupportedError(
            f"{name_or_path!r} is of model type {config.model_type!r}; supported are {', '.join(sorted(ADAPTERS))}."
        )
    return config


def config_of(name_or_path: str) -> Any:
    """The config of a model as users name it: shipped, in a folder, or on a hub. ModelError or UnsupportedError."""
    return shipped_config(name_or_path) if name_or_path in KNOWN_MODELS else read_config(name_or_path)


def own_prune_layer(config: Any) -> int:
    """The model's own default, or the paper's."""
    return int(getattr(config, "coremat_prune_layer", PRUNE_LAYER))


def _quiet() -> None:
    """No bars and no tales of retries: what goes wrong is said in one sentence by the error."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def _source(name: str) -> str:
    """Where from_pretrained should look. A single word that is no folder must be a known name."""
    if name in KNOWN_MODELS:
        return KNOWN_MODELS[name].checkpoint or _shipped_folder(name)
    if Path(name).is_dir():
        return name
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    if "/" in name or name.startswith((".", "~")):
        raise ModelError(f"there is no model folder {name!r}; accepted: a known name, a folder with a model, a hub id.")
    raise UnknownNameError("model", name, KNOWN_MODELS)


def _shipped_folder(name: str) -> str:
    """Of a model without a checkpoint of its own; two are put together where that has not been done."""
    if name not in (SMOL, SMOL_TEXT):
        return str(bundled_folder())
    from coremat.models.smol_llava.assemble import language_model_folder, smol_llava_folder

    return str(smol_llava_folder() if name == SMOL else language_model_folder())


def pick_device(device: str) -> str:
    kind, _, number = device.partition(":")
    if kind not in DEVICES or (number and not (kind == "cuda" and number.isdigit())):
        raise ConfigError(f"device is {device!r}; accepted: {', '.join(DEVICES)}, cuda:0 and so on.")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device is {device!r}, but torch sees {torch.cuda.device_count()} CUDA devices here.")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def pick_dtype(dtype: str) -> torch.dtype | str:
    """The torch dtype of a name; "auto" stays what it is, for `_model` knows the device."""
    one_of("dtype", dtype, ("auto", *DTYPES))
    return DTYPES.get(dtype, "auto")


def _config(source: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{source!r} cannot be loaded as a model: {_first_line(error)}") from error


def _model(source: str, config: Any, device: str, dtype: torch.dtype | str) -> nn.Module:
    if dtype == "auto" and device == "cpu":
        dtype = torch.float32  # 16-bit weights are slow or inexact on many CPUs
    try:
        model, info = auto_class(config).from_pretrained(source, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{source!r} cannot be loaded as a model: {_first_line(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(f"{source!r} lacks {len(missing)} weights of its architecture, the first is {missing[0]!r}.")
    return model.to(device).eval()


def _processor(source: str, preprocessing: Preprocessing) -> Any:
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(source, **preprocessing.pixel_limits)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{source!r} has no usable processor: {_first_line(error)}") from error
    if not hasattr(processor, "tokenizer"):
        raise ModelError(f"{source!r} has no usable processor: it holds a {type(processor).__name__} only.")
    processor.tokenizer.padding_side = "left"
    return processor


def _tokenizer(source: str) -> Any:
    """Of a model of text alone. One that has no padding fills shorter rows of a batch with its end token."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{source!r} has no usable tokenizer: {_first_line(error)}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".") + "."
