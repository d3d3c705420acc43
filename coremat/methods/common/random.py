"""What is drawn at random: by a seed and what the draw is for, the same on every machine."""

import zlib

import torch


def generator(*parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(repr(parts).encode()))
