"""How many parameters a LLaVA has, and where: by formula, from its Hugging Face config. No model is made."""

from dataclasses import dataclass
from typing import Any

from coremat.errors import UnsupportedError
from coremat.flops import DecoderShape

TOWERS = ("clip_vision_model",)


@dataclass(frozen=True)
class ModelSize:
    """One model's decoder, and how many parameters it has where. Biases of the decoder are not counted.

    attention, ffn, norms: of all decoder layers (norms with the last one). embedding: 0 where the head's weights serve.
    tower_flops, projector_flops: of one image. The tower's are those of all its layers, for Hugging Face runs them
    all, also those behind `vision_feature_layer`. image_tokens: of one image.
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

    @classmethod
    def of(cls, config: Any) -> "ModelSize":
        """From the Hugging Face config of a LLaVA with a CLIP tower."""
        text, vision = config.text_config, config.vision_config
        if vision.model_type not in TOWERS:
            raise UnsupportedError(f"the vision tower is {vision.model_type!r}; counted are {', '.join(TOWERS)}.")
        shape, layers = DecoderShape.of(text), text.num_hidden_layers
        patches = _patches(vision)
        image_tokens = patches + (config.vision_feature_select_strategy == "full")
        projector = _projector_weights(config)
        return cls(
            shape=shape,
            layers=layers,
            attention=layers * shape.attention_weights,
            ffn=layers * shape.ffn * shape.neuron_weights,
            norms=(2 * layers + 1) * shape.hidden,
            head=shape.head_weights,
            embedding=0 if config.tie_word_embeddings else shape.head_weights,
            tower=_tower_parameters(vision),
            projector=projector + 2 * shape.hidden * config.multimodal_projector_bias,
            tower_flops=_tower_flops(vision),
            projector_flops=2 * image_tokens * projector,
            image_tokens=image_tokens,
        )

    @property
    def parameters(self) -> int:
        return self.outside_ffn + self.ffn

    @property
    def outside_ffn(self) -> int:
        """Parameters that no neuron sparsity spares."""
        return self.attention + self.norms + self.head + self.embedding + self.tower + self.projector

    @property
    def kv_values(self) -> int:
        """Numbers that the cache holds for one token, in all layers."""
        return 2 * self.layers * self.shape.key_value


def _patches(vision: Any) -> int:
    return (vision.image_size // vision.patch_size) ** 2


def _patch_weights(vision: Any) -> int:
    return vision.hidden_size * vision.num_channels * vision.patch_size**2


def _tower_layer_weights(vision: Any) -> int:
    """Four square projections and an FFN that is not gated."""
    return 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size


def _tower_parameters(vision: Any) -> int:
    hidden = vision.hidden_size
    biases_and_norms = 5 * hidden + vision.intermediate_size + 4 * hidden
    around = hidden + (_patches(vision) + 1) * hidden + 4 * hidden  # class embedding, positions, first and last norm
    layers = vision.num_hidden_layers * (_tower_layer_weights(vision) + biases_and_norms)
    return _patch_weights(vision) + around + layers


def _tower_flops(vision: Any) -> int:
    """Patch embedding, and all layers over the patches and the class token."""
    tokens = _patches(vision) + 1
    layer = 2 * tokens * _tower_layer_weights(vision) + 4 * tokens**2 * vision.hidden_size
    return 2 * _patches(vision) * _patch_weights(vision) + vision.num_hidden_layers * layer


def _projector_weights(config: Any) -> int:
    """Two matrices; the tower's layers that are read stand side by side in the first."""
    features = config.vision_feature_layer
    read = 1 if isinstance(features, int) else len(features)
    hidden = config.text_config.hidden_size
    return hidden * (read * config.vision_config.hidden_size + hidden)
