"""SmolLM2-135M-Instruct out of a GGUF file: config, weights and tokenizer, as plain transformers classes.

The file is read as data, tensor by tensor; nothing of the package that carries it is imported. Matrices were rounded to
four bits (Q4_1, the embedding to eight: Q8_0) by whoever made the file; here each number becomes what it stands for.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from coremat.models.architecture import no_initialisation

CONTROL = 3  # llama.cpp's type of a token that stands for no text

Advance = Callable[[int], None]

_LAYER_WEIGHTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHER_WEIGHTS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


class LanguageModelFile:
    """A Llama with tied embeddings in a GGUF file. Needs the package `gguf`."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self._reader = GGUFReader(path)
        self.tensors = len(self._reader.tensors)

    def _field(self, name: str) -> Any:
        return self._reader.fields[name].contents()

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=len(self._field("tokenizer.ggml.tokens")),
            hidden_size=self._field("llama.embedding_length"),
            intermediate_size=self._field("llama.feed_forward_length"),
            num_hidden_layers=self._field("llama.block_count"),
            num_attention_heads=self._field("llama.attention.head_count"),
            num_key_value_heads=self._field("llama.attention.head_count_kv"),
            max_position_embeddings=self._field("llama.context_length"),
            rms_norm_eps=self._field("llama.attention.layer_norm_rms_epsilon"),
            rope_parameters={"rope_type": "default", "rope_theta": self._field("llama.rope.freq_base")},
            tie_word_embeddings=True,
            bos_token_id=self._field("tokenizer.ggml.bos_token_id"),
            eos_token_id=self._field("tokenizer.ggml.eos_token_id"),
            pad_token_id=self._field("tokenizer.ggml.padding_token_id"),
        )

    def model(self, advance: Advance = lambda tensors: None) -> LlamaForCausalLM:
        """In bfloat16. advance: is told of each tensor read."""
        config = self.config()
        with no_initialisation():
            model = LlamaForCausalLM(config)
        state = {}
        for name, weight in self.weights(config.num_attention_heads, config.num_key_value_heads):
            state[name] = torch.from_numpy(weight).to(torch.bfloat16)
            advance(1)
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
        model.load_state_dict(state, assign=True)
        model.tie_weights()
        _set_generation(model, config)
        return model.eval()

    def weights(self, heads: int, kv_heads: int) -> Iterator[tuple[str, np.ndarray]]:
        """Each by transformers' name, float32, in transformers' order of rows."""
        from gguf import dequantize

        rotated = {"q_proj.weight": heads, "k_proj.weight": kv_heads}
        for tensor in self._reader.tensors:
            name = weight_name(tensor.name)
            weight = dequantize(tensor.data, tensor.tensor_type)
            own = next((count for end, count in rotated.items() if name.endswith(end)), None)
            yield name, np.array(weight if own is None else halves_together(weight, own), np.float32)

    def tokenizer(self, renamed: dict[str, str] | None = None) -> PreTrainedTokenizerFast:
        """SmolLM2's byte-level BPE, single digits. renamed: other spellings for tokens that stand for no text."""
        spelled = [(renamed or {}).get(token, token) for token in self._field("tokenizer.ggml.tokens")]
        merges = [tuple(merge.split(" ")) for merge in self._field("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(spelled)}, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        types = self._field("tokenizer.ggml.token_type")
        control = [token for token, kind in zip(spelled, types, strict=True) if kind == CONTROL]
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
        config = self.config()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=spelled[config.bos_token_id],
            eos_token=spelled[config.eos_token_id],
            pad_token=spelled[config.pad_token_id],
            unk_token=spelled[self._field("tokenizer.ggml.unknown_token_id")],
            padding_side="left",
            model_max_length=config.max_position_embeddings,
            chat_template=self._field("tokenizer.chat_template"),
        )


def weight_name(name: str) -> str:
    """transformers' name of a llama.cpp weight: `blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`."""
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{_LAYER_WEIGHTS[parts[2]]}.{parts[3]}"
    return f"{_OTHER_WEIGHTS[parts[0]]}.{parts[1]}"


def halves_together(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows [heads x D, I] of a head from pairs (0, D/2), (1, D/2 + 1), ... to first half, second half.

    llama.cpp rotates neighbours, transformers rotates halves.
    """
    rows, inputs = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, inputs).swapaxes(1, 2).reshape(rows, inputs)


def _set_generation(model: LlamaForCausalLM, config: LlamaConfig) -> None:
    generation = model.generation_config
    generation.bos_token_id, generation.eos_token_id = config.bos_token_id, config.eos_token_id
    generation.pad_token_id = config.pad_token_id
