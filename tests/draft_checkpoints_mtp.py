"""Makes tiny random draft modules in exactly the published layouts: MTP of several makers, P-EAGLE and DFlash."""

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


def random_layers(sizes: dict[str, Any], count: int, random: Random, *, head_norm: bool, first: int = 0) -> Tensors:
    tensors: Tensors = {}
    for number in range(first, first + count):
        tensors |= decoder_layer(f"layers.{number}", sizes, random, bias=False, head_norm=head_norm)
    return tensors


DFLASH_MASK = 60
BLOCK_SIZE = 5


def dflash(directory: Path, target: Path, *, seed: int = 0, layers: int = 2, **options: Any) -> None:
    """Saves a DFlash as its authors do; ``options`` change its config.json."""
    sizes, random = read_sizes(target) | {"head_dim": 16}, Random(seed + 1)
    hidden, taps = sizes["hidden_size"], [0, 1, 3][:layers]
    tensors = random_layers(sizes, layers, random, head_norm=True)
    tensors |= {
        "fc.weight": random.matrix(hidden, len(taps) * hidden),
        "hidden_norm.weight": random.norm(hidden),
        "norm.weight": random.norm(hidden),
    }
    own = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "rms_norm_eps", "rope_parameters")
    config = {
        "architectures": ["DFlashDraftModel"],
        "auto_map": {"AutoModel": "dflash.DFlashDraftModel"},
        "model_type": "qwen3",
        "attention_bias": False,
        "block_size": BLOCK_SIZE,
        "dflash_config": {"mask_token_id": DFLASH_MASK, "target_layer_ids": taps},
        "head_dim": 16,
        "hidden_size": hidden,
        "layer_types": ["full_attention"] * layers,
        "max_position_embeddings": 64,
        "num_hidden_layers": layers,
        "num_target_layers": sizes["num_hidden_layers"],
        "sliding_window": None,
        "use_sliding_window": False,
        "vocab_size": sizes["vocab_size"],
        **{key: sizes[key] for key in own},
    }
    save_module(directory, tensors, config | options)


def speculators_dflash(directory: Path, target: Path, *, draft_vocab: int = 40, seed: int = 0, **options: Any) -> None:
    """Saves a DFlash as vLLM's speculators project does, with a table and fewer draft tokens of its own."""
    dflash(directory, target, seed=seed)
    config, random = read_sizes(directory), Random(seed + 2)
    for key in ("architectures", "auto_map", "block_size", "dflash_config", "num_target_layers"):
        del config[key]
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    chosen = torch.randperm(vocab, generator=torch.Generator().manual_seed(seed))[:draft_vocab].sort().values
    kept = torch.zeros(vocab, dtype=torch.bool)
    kept[chosen] = True
    tensors = {
        "embed_tokens.weight": random.matrix(vocab, hidden),
        "lm_head.weight": random.matrix(draft_vocab, hidden),
        "d2t": chosen - torch.arange(draft_vocab),
        "t2d": kept,
    }
    outer = {
        "architectures": ["DFlashSpeculator"],
        "aux_hidden_state_layer_ids": [1, 2],
        "block_size": BLOCK_SIZE,
        "draft_vocab_size": draft_vocab,
        "mask_token_id": DFLASH_MASK,
        "sample_from_anchor": False,
        "sliding_window_non_causal": False,
        "speculators_config": {"algorithm": "dflash", "verifier": {"name_or_path": str(target)}},
        "speculators_model_type": "dflash",
        "transformer_layer_config": config,
    }
    save_module(directory, load_file(directory / "model.safetensors") | tensors, outer | options)


def peagle(directory: Path, target: Path, *, seed: int = 0, layers: int = 2, draft_vocab: int = 40) -> None:
    """Saves a P-EAGLE as vLLM's speculators project does."""
    sizes, random = read_sizes(target), Random(seed + 1)
    hidden, vocab = sizes["hidden_size"], sizes["vocab_size"]
    tensors = random_layers(sizes, layers, random, head_norm=False)
    for name in ("q_proj", "k_proj", "v_proj"):
        rows = tensors[f"layers.0.self_attn.{name}.weight"].shape[0]
        tensors[f"layers.0.self_attn.{name}.weight"] = random.matrix(rows, 2 * hidden)
    chosen = torch.randperm(vocab, generator=torch.Generator().manual_seed(seed))[:draft_vocab].sort().values
    kept = torch.zeros(vocab, dtype=torch.bool)
    kept[chosen] = True
    tensors |= {
        "layers.0.hidden_norm.weight": random.norm(hidden),
        "fc.weight": random.matrix(hidden, 3 * hidden),
        **{f"fc_norm.{tap}.weight": random.norm(hidden) for tap in range(3)},
        "norm.weight": random.norm(hidden),
        "embed_tokens.weight": random.matrix(vocab, hidden),
        "lm_head.weight": random.matrix(draft_vocab, hidden),
        "mask_hidden": random.matrix(1, 1, 3 * hidden),
        "d2t": chosen - torch.arange(draft_vocab),
        "t2d": kept,
    }
    config = {
        "architectures": ["PEagleSpeculator"],
        "draft_vocab_size": draft_vocab,
        "eagle_aux_hidden_state_layer_ids": [1, 2, 4],
        "embed_requires_grad": True,
        "fc_norm": True,
        "mask_token_id": DFLASH_MASK,
        "norm_before_fc": False,
        "norm_before_residual": True,
        "norm_output": False,
        "speculators_config": {"algorithm": "peagle", "verifier": {"name_or_path": str(target)}},
        "speculators_model_type": "peagle",
        "transformer_layer_config": {**sizes, "model_type": "llama", "num_hidden_layers": layers},
    }
    save_module(directory, tensors, config)
