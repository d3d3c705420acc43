"""Made layers of which neurons are chosen: random activations, with padding and with neurons that are alike."""

import torch
from hypothesis import strategies as st
from strategies import seeded, seeds

from coremat.methods.views import LayerView


@st.composite
def layers(draw: st.DrawFn) -> LayerView:
    """Up to three sequences, padded on the left with NaN, in any precision. Neurons are drawn with repetition, so that
    many scores are tied, and no other two are near."""
    rows, tokens, size = draw(st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(5, 40)))
    random, dtype = seeded(draw(seeds)), draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
    drawn = torch.randn(rows, tokens, size, generator=random).to(dtype)
    padding = torch.randint(tokens, (rows, 1), generator=random)
    valid = torch.arange(tokens) >= padding
    image = valid & (torch.rand(rows, tokens, generator=random) < 0.5)
    image[:, -1] = False
    alike = drawn[..., torch.randint(size, (size,), generator=random)]
    return layer_view(alike.masked_fill(~valid[..., None], torch.nan), valid, image)


def layer_view(
    activations: torch.Tensor,
    valid: torch.Tensor | None = None,
    image: torch.Tensor | None = None,
    **parts: torch.Tensor,
) -> LayerView:
    """activations: [B, T, F]; valid: bool [B, T], None for all; image: tokens of an image, None for none."""
    there = torch.ones(activations.shape[:2], dtype=torch.bool) if valid is None else valid
    image_index = torch.full(there.shape, -1) if image is None else image.long() - 1
    own = {name: lambda value=value: value for name, value in parts.items()}
    return LayerView(1, there, image_index, activations=lambda: activations, **own)


def voting(layer: LayerView, voters: torch.Tensor) -> list[list[list[float]]]:
    """The activations of each sequence's voting tokens, as numbers."""
    rows = zip(layer.activations.double(), voters, strict=True)
    return [activations[says].tolist() for activations, says in rows]
