"""How many parameters a model has, and where: counted on the empty shell that its Hugging Face config makes.

No weight is made and no adapter is needed. What the vision tower computes is by formula, from the same shell and
`coremat.models.dummy_inputs`: 2 operations per multiply-add of matrix products, as in `coremat.cost.flops`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from coremat.methods.reads import Reads
from coremat.models.architecture import bare_model
from coremat.models.dummy_inputs import TowerPass, dummy_image
from coremat.models.shape import FFN, DecoderShape

PATCH_EMBEDDINGS = (nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class ModelSize:
    """One model's decoder, how many parameters it has where, and what one image (`models.dummy_inputs`) costs it.

    attention, ffn: of all decoder layers; norms: what else the decoder has. embedding: 0 where the head's weights
    serve. tower: everything before the projector, both towers where there are two. tower_flops, projector_flops: of one
    image; the tower's are those of all its layers, for Hugging Face runs them all, also those behind
    `vision_feature_layer`. image_tokens: of one image in the decoder's sequence. cross: the decoder layers that
    look at an image's `cross_keys` in place of the sequence. Models of text alone have 0 of all that images take.
    """

    shape: DecoderShape
    layers: int
    attention: int
    ffn: int
    norms: int
    head: int
    embedding: int
    tower: int
    projector: int
    tower_flops: int
    projector_flops: int
    image_tokens: int
    cross: tuple[int, ...] = ()
    cross_keys: int = 0

    @classmethod
    def of(cls, config: Any) -> "ModelSize":
        """From a Hugging Face config. UnsupportedError for a family without a dummy image."""
        dummy, model = dummy_image(config), bare_model(config, "meta")
        decoder = model.get_decoder()
        cross = {n: layer.cross_attn for n, layer in enumerate(decoder.layers) if hasattr(layer, "cross_attn")}
        attention = _parameters(
            [*cross.values()] + [layer.self_attn for layer in decoder.layers if hasattr(layer, "self_attn")]
        )
        ffn = _parameters(layer.mlp for layer in decoder.layers)
        embedding, head = decoder.get_input_embeddings(), _parameters([model.lm_head])
        projector = _parameters(model.get_submodule(name) for name in dummy.run.projector) if dummy else 0
        own = _parameters([decoder])
        tied = embedding.weight is model.lm_head.weight
        return cls(
            shape=DecoderShape.of(config.get_text_config()),
            layers=len(decoder.layers),
            attention=attention,
            ffn=ffn,
            norms=own - attention - ffn - embedding.weight.numel(),
            head=head,
            embedding=0 if tied else embedding.weight.numel(),
            tower=_parameters([model]) - own - head * (not tied) - projector,
            projector=projector,
            tower_flops=_tower_flops(model, dummy.run) if dummy else 0,
            projector_flops=_projector_flops(model, dummy.run) if dummy else 0,
            image_tokens=dummy.tokens if dummy else 0,
            cross=tuple(cross),
            cross_keys=dummy.cross_keys if dummy else 0,
        )

    @property
    def parameters(self) -> int:
        return self.outside_ffn + self.ffn

    @property
    def outside_ffn(self) -> int:
        """Parameters that no neuron sparsity spares."""
        return self.attention + self.norms + self.head + self.embedding + self.tower + self.projector

    @property
    def cross_layers(self) -> int:
        return len(self.cross)

    @property
    def text_layers(self) -> int:
        """Decoder layers whose attention is over the sequence."""
        return self.layers - self.cross_layers

    @property
    def kv_values(self) -> int:
        """Numbers that the cache holds for one token, in all layers."""
        return 2 * self.text_layers * self.shape.key_value

    @property
    def cross_values(self) -> int:
        """Numbers that the cache holds for one image, in the cross-attention layers."""
        return 2 * self.cross_layers * self.shape.key_value * self.cross_keys

    def cross_flops(self, tokens: int, reads: Sequence[Reads], reads_image: bool) -> int:
        """The cross-attention layers over some tokens. reads: of each of them; reads_image: they make its keys and
        values too."""
        shape = self.shape
        queries = sum(own.of(shape, "q_proj", "o_proj", *FFN) + own.extra for own in reads)
        pairs = 4 * tokens * self.cross_keys * shape.attention
        keys = 2 * self.cross_keys * 2 * shape.hidden * shape.key_value * reads_image
        return 2 * tokens * queries + self.cross_layers * (pairs + keys)


def _parameters(modules: Iterable[nn.Module]) -> int:
    return sum(weight.numel() for module in modules for weight in module.parameters())


def _matrices(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters() if weight.dim() > 1)


def _tower_flops(model: nn.Module, run: TowerPass) -> int:
    """Patch embedding, and all layers over all tokens of all tiles."""
    tower = model.get_submodule(run.tower)
    projectors = {id(part) for name in run.projector for part in model.get_submodule(name).modules()}
    parts = [part for part in tower.modules() if id(part) not in projectors]
    per_patch = sum(_matrices(part) for part in parts if isinstance(part, PATCH_EMBEDDINGS))
    per_token = sum(_matrices(part) for part in parts if isinstance(part, nn.Linear))
    attention = 4 * run.tokens * sum(run.seen) * run.width
    return run.tiles * (2 * run.patches * per_patch + 2 * run.tokens * per_token + attention)


def _projector_flops(model: nn.Module, run: TowerPass) -> int:
    return 2 * run.projected * sum(_matrices(model.get_submodule(name)) for name in run.projector)
