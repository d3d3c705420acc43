"""A tiny random Llama, and the GGUF file that llama.cpp's converter would make of it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

CONTROL, NORMAL = 3, 1
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>")
MERGES = (("r", "e"), ("re", "d"), ("Ġ", "red"), ("1", "2"))
TOKENS = (*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES))
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
HEADS, KV_HEADS, HEAD_SIZE = 4, 2, 8
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tiny_language_model() -> LlamaForCausalLM:
    """Two layers, tied embeddings, weights that bfloat16 holds exactly."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=HEADS * HEAD_SIZE,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_((weight + 0.1 * torch.randn_like(weight)).bfloat16())
    return model


def neighbours_together(weight: np.ndarray, heads: int) -> np.ndarray:
    """Row 2 d of a head from row d of its first half, row 2 d + 1 from row d of its second: llama.cpp's order."""
    out, size = np.empty_like(weight), weight.shape[0] // heads
    for head in range(heads):
        for d in range(size // 2):
            out[head * size + 2 * d] = weight[head * size + d]
            out[head * size + 2 * d + 1] = weight[head * size + size // 2 + d]
    return out


def write_gguf(path: Path, model: LlamaForCausalLM) -> Path:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    _write_sizes(writer, model.config)
    _write_tokens(writer)
    for name, parameter in model.named_parameters():
        weight = parameter.detach().float().numpy()
        if "q_proj" in name or "k_proj" in name:
            weight = neighbours_together(weight, HEADS if "q_proj" in name else KV_HEADS)
        writer.add_tensor(_gguf_name(name), weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_name(name: str) -> str:
    if "embed_tokens" in name:
        return "token_embd.weight"
    if "layers" not in name:
        return "output_norm.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def _write_sizes(writer: Any, config: LlamaConfig) -> None:
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _write_tokens(writer: Any) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(list(TOKENS))
    writer.add_token_types([CONTROL if token in SPECIAL else NORMAL for token in TOKENS])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
