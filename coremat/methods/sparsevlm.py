"""SparseVLM (version 1.5) and SparseVLM+: the words that an image brings to mind say which of its tokens stay.

Zhang, Fan, Ma, Zheng, Huang, Cheng, Gudovskiy, Okuno, Nakata, Keutzer and Zhang, "SparseVLM: Visual Token
Sparsification for Efficient Vision-Language Model Inference", ICML 2025 (arXiv 2410.04417), and its second version. The
text tokens whose embeddings match those of the image above average are the raters, chosen once, at the decoder's input.
The layers 2, 6 and 15 of 32, from 0, prune their output by their own attention: mean over heads and raters. Version 1.5
merges the best of what it drops into a few vectors, around density peaks; the second version does not, divides the
attention by what the rotary embedding alone gives a pair of positions, and hears only the heads that look at images.

Departures: budgets are a list, as in the authors' code; the paper's own count, by the rank of the attention, is not
here. Raters are text behind the last image (theirs: behind the only one), all of it where none is above the mean, the
last token where there is none. Merged vectors take the last dropped places (theirs: behind all kept tokens), and their
noise has a seed. A stage whose budget is not below what there is keeps all (theirs drops one). Heads are chosen by
share (theirs: 14 of 32), layers by their depth, and matches, distances and densities are float32. Of several images
each keeps at least one token, and what they drop is merged together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import ClassVar

import torch

from coremat.errors import ConfigError
from coremat.methods.base import Method, Reduction, Stage
from coremat.methods.budget import as_fraction
from coremat.methods.common.random import generator
from coremat.methods.options import Count, EarlierCache, FixedBudget, Layer, Positions, Seed, Share
from coremat.methods.views import LayerView, PromptView
from coremat.tensors import take

AFTER, DEPTH = (3, 7, 16), 32  # decoder layers that have run before each stage, of so many
WHOLE = 576  # image tokens that the published budgets are of
BLOCK = 64  # query tokens whose attention is computed at a time
NOISE = 1e-6  # that tells equal densities apart
Budgets = Mapping[int, tuple[int, int, int]]


@dataclass(frozen=True, kw_only=True)
class RatedStages(Method):
    """What both versions have in common."""

    published: ClassVar[Budgets] = {}

    tokens: FixedBudget = 0.3334
    budgets: tuple[FixedBudget, ...] | None = None
    layers: tuple[Layer, ...] | None = None
    positions: Positions = "original"
    earlier_cache: EarlierCache = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        stages, given = len(self.layers or AFTER), self.budgets or AFTER
        if len(given) != stages:
            raise ConfigError(
                f"there are {len(given)} budgets ({'/'.join(map(str, self.budgets or ('by tokens',)))}) for {stages} "
                f"stages; accepted: as many budgets as layers, {len(AFTER)} where no layers are given."
            )

    def stages(self, layers: int) -> Sequence[Stage]:
        pairs = zip(self.layers or depths(layers), self.budgets or budgets(self.tokens, self.published), strict=False)
        return tuple(Stage(after, keep, self.positions, self.earlier_cache) for after, keep in pairs)


@dataclass(frozen=True, kw_only=True)
class SparseVLM(RatedStages):
    """tokens: which list of budgets, by the authors' name for it: 192, 128, 96 or 64 of 576 image tokens, the mean over
    decoder layers as they count it (of 32 layers two see all tokens, and 4, 10 and 16 what the three stages keep; in
    fact these are 3, 4, 9 and 16 layers, and the mean of their 192 is 203). What stays to the end is the last budget,
    110 of 192. Between the lists, and from 192 to all, budgets follow in a straight line, and so does that mean; below
    64 they shrink in proportion. A count takes a list for 576 tokens as it stands, a share takes it for any number.

    budgets: the list itself, counts or shares of the prompt's image tokens (typed 300/200/110), in place of `tokens`.
    layers: decoder layers that have run before each stage, by default 3/7/16 of 32 and the same depths of others.
    recycled: share of what a stage drops, the best by score, that is merged, one token more than that; merged vectors
    are kept beyond the budget. cluster: so many tokens to a merged vector, one vector more than that. seed: of the
    noise that tells equal densities apart.
    """

    name: ClassVar[str] = "sparsevlm"
    summary: ClassVar[str] = "SparseVLM v1.5: three stages by the attention of matching words; the best dropped merged"
    paper: ClassVar[str] = "Zhang et al., ICML 2025 (arXiv 2410.04417)"
    departures: ClassVar[str] = (
        "budgets are a list; raters are text behind the last image; merged vectors take the last dropped places"
    )
    published: ClassVar[Budgets] = {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}

    positions: Positions = "auto"
    recycled: Share = 0.3
    cluster: Count = 10
    seed: Seed = 0

    def score(self, stage: Stage, layer: LayerView) -> torch.Tensor:
        return rated_attention(layer, raters_of(layer.prompt)).mean(1)

    def recycle(self, stage: Stage, hidden: torch.Tensor, scores: torch.Tensor, keep: torch.Tensor) -> Reduction:
        dropped = (~keep).nonzero()[:, 0]
        if not len(dropped):
            return Reduction(keep)
        candidates = int(as_fraction(self.recycled) * len(dropped)) + 1
        best = scores[dropped].sort(descending=True, stable=True).indices[:candidates]
        count = min(len(best), len(best) // self.cluster + 1)
        noise = torch.rand(len(best), generator=generator(self.seed, stage.after)) * NOISE
        merged = cluster_means(hidden[dropped[best].to(hidden.device)], count, noise.to(hidden.device))
        places = dropped[-count:]
        features = hidden.index_copy(0, places.to(hidden.device), merged.to(hidden.dtype))
        return Reduction(keep.index_fill(0, places, True), features)


@dataclass(frozen=True, kw_only=True)
class SparseVLMPlus(RatedStages):
    """tokens, budgets, layers: as those of SparseVLM, with lists of its own. heads: share of the heads that are heard,
    by the attention of raters to images; at least one."""

    name: ClassVar[str] = "sparsevlm+"
    summary: ClassVar[str] = "SparseVLM+: the same without merging, by attention without its drift, of some heads"
    paper: ClassVar[str] = "Zhang et al., ICML 2025 (arXiv 2410.04417), second version"
    departures: ClassVar[str] = "budgets are a list; raters are text behind the last image; heads by share"
    published: ClassVar[Budgets] = {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)}

    heads: Share = 0.4375

    def score(self, stage: Stage, layer: LayerView) -> torch.Tensor:
        rated = rated_attention(layer, raters_of(layer.prompt), unbiased=True)
        return heard(rated, layer.image, max(1, int(as_fraction(self.heads) * rated.shape[1])))


# --- budgets ----------------------------------------------------------------------------------------------------------


def depths(layers: int) -> list[int]:
    """Where the stages stand in a decoder of that many layers: 3, 7, 16 of 32. In one too shallow, fewer."""
    places: list[int] = []
    for after in AFTER:
        places.append(max(after * layers // DEPTH, places[-1] + 1 if places else 1))
    return [place for place in places if place < layers] or [1]


def budgets(tokens: int | float, published: Budgets) -> tuple[int | float, ...]:
    """The list of budgets of a name: counts for a count, for a share shares, rounded up in the fourth place (so that of
    576 tokens they give the published counts)."""
    if isinstance(tokens, int):
        return tuple(max(1, int(keep)) for keep in between(Fraction(tokens), published))
    shares = (keep / WHOLE for keep in between(as_fraction(tokens) * WHOLE, published))
    return tuple(ceil(share * 10_000) / 10_000 for share in shares)


def between(name: Fraction, published: Budgets) -> list[Fraction]:
    """The budgets on a straight line between the two lists whose names are next."""
    if name >= WHOLE:
        return [name] * len(AFTER)
    lists = {0: (0, 0, 0), **published, WHOLE: (WHOLE,) * 3}
    low = max(own for own in lists if own <= name)
    high = min(own for own in lists if own > name)
    part = (name - low) / (high - low)
    return [a + part * (b - a) for a, b in zip(lists[low], lists[high], strict=True)]


# --- scores -----------------------------------------------------------------------------------------------------------


def raters_of(prompt: PromptView) -> torch.Tensor:
    """`text_raters`, chosen once for all stages."""
    return prompt.once("raters", lambda: text_raters(prompt.inputs, prompt.valid, prompt.image_index >= 0, prompt.tail))


def text_raters(inputs: torch.Tensor, valid: torch.Tensor, image: torch.Tensor, tail: int) -> torch.Tensor:
    """The text tokens that image tokens match above average: bool [B, tail], of the last columns.

    inputs: [B, S, H]; valid, image: bool [B, S]; tail: columns behind the last image token of any sequence. Each image
    token's products with the text behind the images are a softmax; a text token's match is the mean over image tokens.
    """
    behind = (valid & (image.flip(1).cumsum(1).flip(1) == 0))[:, -tail:]
    behind[:, -1] |= ~behind.any(1)
    products = torch.stack([row @ row[-tail:].T for row in map(_wide, inputs)])  # one at a time, for they are large
    matches = products.masked_fill(~behind[:, None], -torch.inf).softmax(-1)
    match = matches.masked_fill(~image[..., None], 0).sum(1) / image.sum(1, keepdim=True).clamp(min=1)
    mean = match.masked_fill(~behind, 0).sum(1, keepdim=True) / behind.sum(1, keepdim=True)
    above = behind & (match > mean)
    return torch.where(above.any(1, keepdim=True), above, behind)


def rated_attention(layer: LayerView, raters: torch.Tensor, unbiased: bool = False) -> torch.Tensor:
    """What each head attends to, mean over raters: float32 [B, heads, T].

    raters: bool [B, tail], of the last columns. unbiased: divided by `rotary_bias`. The rows of all text behind the
    images are computed, for how many of it are raters only the device knows, and it would have to be waited for.
    """
    batch, width = layer.valid.shape
    total: torch.Tensor | float = 0.0
    for says, columns in zip(
        raters.split(BLOCK, 1),
        torch.arange(width - raters.shape[1], width, device=raters.device).expand(batch, -1).split(BLOCK, 1),
        strict=True,
    ):
        weights = layer.attention(columns)
        if unbiased:
            weights = weights / rotary_bias(layer.rotary, columns)[:, None]
        total = total + weights.masked_fill(~says[:, None, :, None], 0).sum(2)
    return total / raters.sum(1)[:, None, None]


def rotary_bias(rotary: tuple[torch.Tensor, torch.Tensor], columns: torch.Tensor) -> torch.Tensor:
    """The logits of queries and keys of ones, by the rotary embedding alone: float32 [B, q, T].

    rotary: cosine and sine [B or 1, T, d]; columns: int64 [B, q], of the queries.
    """
    cos, sin = (table.float() for table in rotary)
    first, second = sin.chunk(2, dim=-1)
    ones = cos + torch.cat((-first, second), dim=-1)
    return take(ones, columns, 1) @ ones.transpose(1, 2) * ones.shape[-1] ** -0.5


def heard(rated: torch.Tensor, image: torch.Tensor, count: int) -> torch.Tensor:
    """The mean over the `count` heads of each sequence that attend most to images, ties to the lower head. rated:
    [B, heads, T]; image: bool [B, T]. Returns [B, T]."""
    mass = rated.masked_fill(~image[:, None], 0).sum(-1)
    return take(rated, mass.sort(dim=-1, descending=True, stable=True).indices[:, :count], 1).mean(1)


# --- what is merged ---------------------------------------------------------------------------------------------------


def cluster_means(vectors: torch.Tensor, count: int, noise: torch.Tensor) -> torch.Tensor:
    """The means of `count` clusters around density peaks (DPC-kNN), the strongest peak first: float32 [count, H].

    vectors: [n, H]; noise: [n], added to the densities. A vector's density falls with the mean squared distance to its
    `count` nearest, itself among them; it is a peak by its density times the distance to the nearest that is denser.
    """
    vectors = _wide(vectors)
    # Not by a matrix product, in which a few very large hidden dimensions swallow the small distances.
    distance = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist") * vectors.shape[1] ** -0.5
    density = (-distance.topk(count, dim=1, largest=False).values.square().mean(1)).exp() + noise
    denser = density[None] > density[:, None]
    peak = torch.where(denser, distance, distance.max()).amin(1) * density
    centres = peak.sort(descending=True, stable=True).indices[:count]
    own = torch.arange(count, device=vectors.device)
    of_each = distance[centres].argmin(0).index_copy(0, centres, own)
    member = (of_each == own[:, None]).to(vectors.dtype)
    return member @ vectors / member.sum(1, keepdim=True)


def _wide(vectors: torch.Tensor) -> torch.Tensor:
    """In float32 at least."""
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))
