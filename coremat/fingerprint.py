"""Which weights a model has, as a few letters: cheap for 7 billion parameters, and different after training."""

import hashlib

import torch
from torch import nn

SAMPLES = 64  # numbers of each weight


def fingerprint(model: nn.Module, precision: torch.dtype = torch.float32) -> str:
    """Of names, shapes and a sample of every weight.

    precision: to which the sample is rounded first. bfloat16 makes it the same whether a checkpoint of 16 bits was
    loaded as it is or wider.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().flatten()
        sample = flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES].to(precision).to("cpu", torch.float32)
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]
