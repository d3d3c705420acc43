"""The file of a calibration: tensors in safetensors, and beside them what they were made of.

It is read for one method, with one set of options, on one model's weights, and refused for anything else.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from coremat.errors import ConfigError, OutputError
from coremat.fingerprint import fingerprint

FORMAT = 1
MADE_BY = "coremat calibrate"
KEY = "coremat"  # of the one entry of the file's metadata
ACCEPTED = f"what {MADE_BY} made"


@dataclass(frozen=True, eq=False)
class Calibration:
    """tensors: what the method's `calibrate` returned. about, plain JSON: method and the options that it was made with,
    the model's name, sizes and fingerprint, the tokens and the data, command and version."""

    tensors: Mapping[str, torch.Tensor]
    about: Mapping[str, Any]

    def write(self, path: Path) -> None:
        """OutputError where it cannot be written."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.tensors.items()}
        about = {"format": FORMAT, **self.about, "sha256": _digest(tensors)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, path, metadata={KEY: json.dumps(about)})
        except (OSError, SafetensorError) as error:
            raise OutputError(f"cannot write {path}: {error}") from error

    @classmethod
    def read(cls, path: Path, accepted: str = ACCEPTED) -> "Calibration":
        """ConfigError for what is no whole calibration. accepted: what there may be, in words."""
        _check_there(path, accepted)
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {}).get(KEY, "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise ConfigError(f"the calibration {str(path)!r} is broken: {error}.") from error
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise ConfigError(f"{str(path)!r} holds no calibration of format {FORMAT}; accepted: what {MADE_BY} made.")
        if about.get("sha256") != _digest(tensors):
            raise ConfigError(f"the calibration {str(path)!r} is broken: its values are not those that were written.")
        return cls(tensors, about)


def sizes(model: Any) -> dict[str, int]:
    """Of the decoder, by which a calibration's tensors are shaped."""
    text = model.config.get_text_config()
    return {"layers": text.num_hidden_layers, "hidden": text.hidden_size, "ffn": text.intermediate_size}


def weights_of(model: Any) -> str | None:
    """The model's fingerprint, the same in 16 and 32 bits; None for a shell without weights."""
    if any(weight.is_meta for weight in model.parameters()):
        return None
    return fingerprint(model, torch.bfloat16)


def check_made_for(path: str, about: Mapping[str, Any], method: Mapping[str, Any], model: Any) -> None:
    """ConfigError unless the calibration is that of this method, of these options, on this model.

    about: of the calibration; method: its name and the options that its calibration depends on.
    """
    if about["method"] != method["name"]:
        raise ConfigError(f"{path!r} is a calibration of {about['method']}; accepted: one of {method['name']}.")
    if about["options"] != method["options"]:
        raise ConfigError(
            f"{path!r} was made with {_typed(about['options'])}, and the method has {_typed(method['options'])}; "
            "accepted: the same."
        )
    if about["sizes"] != sizes(model):
        raise ConfigError(
            f"{path!r} was made for {_typed(about['sizes'])}, and this model has {_typed(sizes(model))}; accepted: the "
            "same."
        )
    own = weights_of(model)
    if own is not None and about["weights"] != own:
        raise ConfigError(
            f"{path!r} was made on other weights (of {about['model']}, {about['weights']}) than this model's ({own}); "
            "accepted: the same."
        )


def with_file(identity: dict[str, Any], option: str, path: Path, accepted: str = ACCEPTED) -> dict[str, Any]:
    """A method's identity with the file that an option names: by its name and its content, wherever it lies."""
    options = {**identity["options"], option: path.name}
    return {**identity, "options": options, option: {"file": path.name, "sha256": file_digest(path, accepted)}}


def file_digest(path: Path, accepted: str = ACCEPTED) -> str:
    """SHA-256 of a file, counted once for each state of it. ConfigError where there is none."""
    _check_there(path, accepted)
    state = path.stat()
    return _file_digest(path, state.st_mtime_ns, state.st_size)


@cache
def _file_digest(path: Path, changed: int, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_there(path: Path, accepted: str) -> None:
    if not path.is_file():
        raise ConfigError(f"there is no file {str(path)!r}; accepted: {accepted}.")


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _typed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items()) or "no options"
