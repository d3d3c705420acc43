"""Methods that are fitted to a model before they can run on it: thresholds, predictors.

    @dataclass(frozen=True, kw_only=True)
    class Halves(Calibrated):
        def calibrate_layer(self, layer):
            return {"median": layer.activations(False).abs().median()}

        def decode_ffn(self, number, mlp, state):
            return MyFFN(mlp, state["median"][number])

`coremat calibrate` lets the dense model answer prompts, keeps what its layers read at the tokens of the answers, and
hands it to `calibrate`; the tensors go into a file, which `calibration=FILE` gives to the method. `setup` reads it,
refuses what was made for something else, and returns the tensors as the method's state.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from coremat.errors import UnsupportedError
from coremat.methods.base import Method
from coremat.methods.calibration_file import MADE_BY, Calibration, check_made_for, with_file


@dataclass(frozen=True, eq=False)
class LayerSample:
    """What one decoder layer of the dense model read at n tokens of its answers.

    mlp: its FFN. inputs: by the name of a Linear, [n, in], on the device of the weights and in their dtype. held_out:
    bool [n], on the CPU: tokens of prompts on which nothing is fitted, only judged.
    """

    number: int
    mlp: Any
    inputs: Mapping[str, torch.Tensor]
    held_out: torch.Tensor

    def ffn_input(self, held_out: bool) -> torch.Tensor:
        """What the FFN read, float32 [n, H]: at the tokens that are held out, or at the others."""
        values = self.inputs["gate_proj"]
        return values[(self.held_out == held_out).to(values.device)].float()

    def gate(self, held_out: bool) -> torch.Tensor:
        """act(gate x), float32 [n, F], of the tokens that are held out, or of the others."""
        return self._of_inputs(held_out, lambda x: self.mlp.act_fn(self.mlp.gate_proj(x)))

    def activations(self, held_out: bool) -> torch.Tensor:
        """act(gate x) * (up x), float32 [n, F]: the input of `down_proj`."""
        return self._of_inputs(held_out, lambda x: self.mlp.act_fn(self.mlp.gate_proj(x)) * self.mlp.up_proj(x))

    def _of_inputs(self, held_out: bool, make: Any) -> torch.Tensor:
        values = self.inputs["gate_proj"]
        with torch.no_grad():
            return make(values[(self.held_out == held_out).to(values.device)]).float()


@dataclass(frozen=True, kw_only=True)
class Calibrated(Method):
    """calibration: the file of `coremat calibrate`."""

    sampled: ClassVar[tuple[str, ...]] = ("gate_proj",)
    """The Linears of a layer whose inputs `calibrate` gets."""
    calibrated_for: ClassVar[tuple[str, ...]] = ()
    """Options that a calibration depends on: it is refused where they have other values."""

    calibration: str | None = None

    def calibrate(self, layers: Iterable[LayerSample]) -> Mapping[str, torch.Tensor]:
        """What `calibrate_layer` makes of each layer, stacked: [L, ...]."""
        found = [self.calibrate_layer(layer) for layer in layers]
        return {name: torch.stack([one[name] for one in found]).cpu() for name in found[0]}

    def calibrate_layer(self, layer: LayerSample) -> Mapping[str, torch.Tensor]:
        """Tensors by name, of the same shape for each layer."""
        raise NotImplementedError

    def figures(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """What `coremat calibrate` prints of the tensors: [L], a number for each layer, by what it is."""
        return {name: value for name, value in tensors.items() if value.dim() == 1}

    def made_with(self) -> dict[str, Any]:
        """What a calibration of this method is told by."""
        return {"name": self.label, "options": {name: getattr(self, name) for name in self.calibrated_for}}

    def setup(self, model: Any) -> Mapping[str, torch.Tensor]:
        """The tensors of the calibration. UnsupportedError where none is given, ConfigError for that of something
        else."""
        if self.calibration is None:
            raise UnsupportedError(_how_to(self.label))
        found = Calibration.read(Path(self.calibration))
        check_made_for(self.calibration, found.about, self.made_with(), model)
        return found.tensors

    def identity(self) -> dict[str, Any]:
        own = super().identity()
        return own if self.calibration is None else with_file(own, "calibration", Path(self.calibration))


def _how_to(name: str) -> str:
    file = f"{name}.safetensors"
    return (
        f"{name} needs a calibration of this model: {MADE_BY} {name} --model NAME --tasks shapes --output {file}, and "
        f"then {name}:calibration={file}"
    )
