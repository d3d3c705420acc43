"""From a config and what a layer showed to the tokens and neurons that stay."""

import zlib
from collections.abc import Sequence

import torch

from coremat.config import SparsityConfig
from coremat.core_neurons import core_count
from coremat.core_tokens import above_knee, budget, highest, one_per_image

DRAWN = ("random", "predicted")  # choices of neurons that are drawn, per sequence and layer
BY_KNEE = ("core-neurons", "attention", "projection")  # scores that have a knee of their own


def voting(voters: str, valid: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
    """Who votes for core neurons, bool [B, T]: "all" real tokens, the "text" ones, or the "last" one."""
    if voters == "all":
        return valid
    if voters == "text":
        return valid & (visual < 0)
    last = torch.zeros_like(valid)
    last[:, -1] = True
    return last


def keep_tokens(
    config: SparsityConfig,
    scores: torch.Tensor | None,
    counts: torch.Tensor,
    visual: torch.Tensor,
    valid: torch.Tensor,
    seeds: Sequence[int],
) -> torch.Tensor:
    """All text, the image tokens that the config keeps, and the last token: bool [B, S].

    scores: [B, S], None for random ones; counts: int64 [B, S], core neurons activated; visual: int64 [B, S], the
    image of each token or -1; valid: bool [B, S]; seeds: one per sequence, for random scores.
    """
    keep = valid & (visual < 0)
    for row in range(len(keep)):
        image = (visual[row] >= 0).nonzero()[:, 0]
        if len(image):
            own = _random_scores(config, seeds[row], len(image)) if scores is None else scores[row, image]
            keep[row, image] = _keep_image_tokens(config, own.to(keep.device), counts[row, image], visual[row, image])
    keep[:, -1] |= valid[:, -1]  # the first new token comes out of the last column, even if that is an image's
    return keep


def _keep_image_tokens(
    config: SparsityConfig, scores: torch.Tensor, counts: torch.Tensor, image: torch.Tensor
) -> torch.Tensor:
    """One sequence: scores, counts and image number of its n image tokens. Returns bool [n]."""
    signed = config.knee == "signed"
    if not isinstance(config.tokens, str):
        keep = highest(scores, budget(config.tokens, len(scores)))
    elif config.token_score in BY_KNEE:
        keep = above_knee(scores, signed)
    else:
        keep = highest(scores, int(above_knee(counts, signed).sum()))
    return one_per_image(keep, scores, image)


def sample_seeds(input_ids: torch.Tensor, valid: torch.Tensor) -> list[int]:
    """One number per sequence, from its own token ids, so that a padded batch draws what each sequence draws alone.

    input_ids: [B, S], or a column of the embeddings where there are no ids; valid: bool [B, S].
    """
    exact = input_ids.float() if input_ids.is_floating_point() else input_ids  # numpy has no bfloat16
    rows = zip(exact.cpu(), valid.cpu(), strict=True)
    return [zlib.crc32(ids[real].numpy().tobytes()) for ids, real in rows]


def _generator(*parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(repr(parts).encode()))


def _random_scores(config: SparsityConfig, seed: int, count: int) -> torch.Tensor:
    return torch.rand(count, generator=_generator(config.seed, seed))


def random_neurons(config: SparsityConfig, seeds: Sequence[int], layer: int, size: int) -> torch.Tensor:
    """As many neurons as would be core, drawn per sequence and layer. Returns int64 [B, m], ascending."""
    count = core_count(size, config.beta)
    drawn = [torch.randperm(size, generator=_generator(config.seed, seed, layer))[:count] for seed in seeds]
    return torch.stack(drawn).sort(-1).values
