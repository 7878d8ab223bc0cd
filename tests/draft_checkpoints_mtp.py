"""Makes tiny random MTP modules in exactly the layouts that their makers publish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support.checkpoints import edit_json
from tests.support.zoo import tiny

SPREAD = 0.3
Tensors = dict[str, torch.Tensor]


class Random:
    """Draws tensors of one seed, in float64: a test may compare them without an error of rounding."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def matrix(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self._generator, dtype=torch.float64) * SPREAD

    def norm(self, size: int) -> torch.Tensor:
        return 1 + self.matrix(size)


def decoder_layer(prefix: str, sizes: dict[str, Any], random: Random, *, bias: bool, head_norm: bool) -> Tensors:
    """One layer under Llama's names; ``sizes`` are those of a config.json. Query, key and value may be biased."""
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    heads, kv_heads = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    dim = sizes.get("head_dim") or hidden // heads
    rows = {"q_proj": heads * dim, "k_proj": kv_heads * dim, "v_proj": kv_heads * dim}
    tensors = {f"self_attn.{name}.weight": random.matrix(count, hidden) for name, count in rows.items()}
    if bias:
        tensors |= {f"self_attn.{name}.bias": random.matrix(count) for name, count in rows.items()}
    if head_norm:
        tensors |= {f"self_attn.{name}.weight": random.norm(dim) for name in ("q_norm", "k_norm")}
    tensors |= {
        "self_attn.o_proj.weight": random.matrix(hidden, heads * dim),
        "mlp.gate_proj.weight": random.matrix(inner, hidden),
        "mlp.up_proj.weight": random.matrix(inner, hidden),
        "mlp.down_proj.weight": random.matrix(hidden, inner),
        "input_layernorm.weight": random.norm(hidden),
        "post_attention_layernorm.weight": random.norm(hidden),
    }
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def add_tensors(directory: Path, tensors: Tensors) -> None:
    """Adds tensors to a model's only file."""
    file = directory / "model.safetensors"
    save_file(load_file(file) | tensors, file, metadata={"format": "pt"})


def read_sizes(directory: Path) -> dict[str, Any]:
    sizes: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return sizes


def joined(prefix: str, names: dict[str, str], hidden: int, random: Random) -> Tensors:
    """Two norms, the matrix that joins what they norm, and the norm at the end, under a maker's names."""
    tensors = {
        names["token"]: random.norm(hidden),
        names["hidden"]: random.norm(hidden),
        names["project"]: random.matrix(hidden, 2 * hidden),
        names["norm"]: random.norm(hidden),
    }
    return {f"{prefix}{name}.weight": tensor for name, tensor in tensors.items()}


MIMO_NAMES = {
    "token": "token_layernorm",
    "hidden": "hidden_layernorm",
    "project": "input_proj",
    "norm": "final_layernorm",
}


def tiny_mimo(directory: Path, *, seed: int = 0, num_modules: int = 1, **options: Any) -> Any:
    """Saves a random MiMo with its modules, and returns transformers' Qwen2 of the same trunk, in float32."""
    reference = tiny(directory, "qwen2", seed=seed, **options)
    edit_json(
        directory / "config.json",
        model_type="mimo",
        architectures=["MiMoForCausalLM"],
        num_nextn_predict_layers=num_modules,
    )
    sizes, random = read_sizes(directory), Random(seed + 1)
    for number in range(num_modules):
        prefix = f"model.mtp_layers.{number}"
        layer = decoder_layer(prefix, sizes, random, bias=True, head_norm=False)
        add_tensors(directory, layer | joined(f"{prefix}.", MIMO_NAMES, sizes["hidden_size"], random))
    return reference


QWEN_NAMES = {"token": "pre_fc_norm_embedding", "hidden": "pre_fc_norm_hidden", "project": "fc", "norm": "norm"}
DEEPSEEK_NAMES = {"token": "enorm", "hidden": "hnorm", "project": "eh_proj", "norm": "shared_head.norm"}


def own_mtp(directory: Path, *, seed: int = 0, num_layers: int = 1, **options: Any) -> None:
    """Saves a random Qwen3 that carries an MTP module under Qwen's names, as stitched into a target."""
    tiny(directory, "qwen3", seed=seed, **options)
    sizes, random = read_sizes(directory), Random(seed + 1)
    for number in range(num_layers):
        add_tensors(directory, decoder_layer(f"mtp.layers.{number}", sizes, random, bias=False, head_norm=True))
    add_tensors(directory, joined("mtp.", QWEN_NAMES, sizes["hidden_size"], random))


def save_module(directory: Path, tensors: Tensors, config: dict[str, Any]) -> None:
    """A module's directory of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))


def deepseek_mtp(directory: Path, target: Path, *, seed: int = 0) -> None:
    """Saves a dense module as it lies behind the layers of a DeepSeek-V3, beside some of the trunk's tensors."""
    sizes, random = read_sizes(target), Random(seed + 1)
    hidden, count = sizes["hidden_size"], sizes["num_hidden_layers"]
    prefix = f"model.layers.{count}"
    tensors = decoder_layer(prefix, sizes, random, bias=False, head_norm=False)
    tensors |= joined(f"{prefix}.", DEEPSEEK_NAMES, hidden, random)
    for name in ("embed_tokens", "shared_head.head"):
        tensors[f"{prefix}.{name}.weight"] = random.matrix(sizes["vocab_size"], hidden)
    tensors |= decoder_layer("model.layers.0", sizes, random, bias=False, head_norm=False)
    save_module(directory, tensors, {**sizes, "model_type": "deepseek_v3", "num_nextn_predict_layers": 1})


def speculators_mtp(directory: Path, target: Path, *, seed: int = 0) -> None:
    """Saves a module as vLLM's speculators project does, for a Qwen3."""
    sizes, random = read_sizes(target), Random(seed + 1)
    prefix = "mtp_layers.0"
    tensors = decoder_layer(prefix, sizes, random, bias=False, head_norm=True)
    tensors |= joined(f"{prefix}.", MIMO_NAMES, sizes["hidden_size"], random)
    config = {
        "architectures": ["MTPDraftModel"],
        "speculators_model_type": "mtp",
        "num_nextn_predict_layers": 1,
        "speculators_config": {
            "algorithm": "mtp",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
            "verifier": {"architectures": ["Qwen3ForCausalLM"], "name_or_path": str(target)},
        },
        "transformer_layer_config": sizes,
    }
    save_module(directory, tensors, config)
