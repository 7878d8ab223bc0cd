"""Knows how a Hugging Face directory of the plain Llama family becomes a GGUF file of one weight type.

Norms stay float32, as llama.cpp wants them; every matrix, embedding and output included, gets the type asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
STORED: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
FIXED = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
BY_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def export(model: str, path: Path, kind: str) -> None:
    """Writes ``path``.

    Args:
        kind: f32, f16, bf16, q8_0, q4_0 or another type that gguf quantises to.

    Raises:
        ValueError: a model that is not a plain Llama.
    """
    config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    check(config)
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads", config["num_attention_heads"])
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    wanted = gguf.GGMLQuantizationType[kind.upper()]
    writer = gguf.GGUFWriter(path, "llama")
    describe(writer, config, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    for name, tensor in tensors(Path(model)):
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        rows = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}
        count = next((many for part, many in rows.items() if part in name), None)
        values = np.ascontiguousarray(tensor if count is None else interleaved(tensor, count))
        if values.ndim == 1:
            writer.add_tensor(renamed(name), values)
        else:
            writer.add_tensor(renamed(name), gguf.quants.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check(config: dict[str, Any]) -> None:
    """Refuses what the names and numbers written here would describe wrongly."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if config["model_type"] != "llama" or kind != "default" or config.get("attention_bias") or config.get("mlp_bias"):
        raise ValueError(f"only plain Llama models are exported, not {config['model_type']} with {kind} rotations")


def describe(writer: gguf.GGUFWriter, config: dict[str, Any], *, heads: int, kv_heads: int, head_dim: int) -> None:
    """The metadata; there is no tokenizer, as prompts go in and answers come out as token ids."""
    rope = config.get("rope_parameters") or {}
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    writer.add_rope_freq_base(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    writer.add_rope_dimension_count(head_dim)
    writer.add_tokenizer_model("no_vocab")


def renamed(name: str) -> str:
    """A tensor's name in GGUF."""
    if name in FIXED:
        return FIXED[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{BY_LAYER[rest.removesuffix('.weight')]}.weight"


def interleaved(weight: Array, num_heads: int) -> Array:
    """Rows [head, half, pair] -> [head, pair, half]: llama.cpp rotates neighbours where Hugging Face rotates halves."""
    halves = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def tensors(directory: Path) -> Iterator[tuple[str, Array]]:
    """(name, float32 values) of every safetensors file; read here, as NumPy's reader knows no bfloat16."""
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        data = np.memmap(path, np.uint8, "r", offset=8 + length)
        for name, about in header.items():
            if name != "__metadata__" and "rotary_emb" not in name:
                yield name, _values(data, about)


def _values(data: Array, about: dict[str, Any]) -> Array:
    first, last = about["data_offsets"]
    if about["dtype"] not in STORED:
        raise ValueError(f"weights stored as {about['dtype']} are not exported")
    stored: Array = data[first:last].view(STORED[about["dtype"]]).reshape(about["shape"])
    if about["dtype"] == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)
