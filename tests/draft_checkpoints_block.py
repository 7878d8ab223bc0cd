"""Makes tiny random draft modules for several tokens a pass in exactly the published layouts: P-EAGLE and DFlash."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.draft_checkpoints_mtp import Random, Tensors, decoder_layer, read_sizes, save_module


def random_layers(sizes: dict[str, Any], count: int, random: Random, *, head_norm: bool, first: int = 0) -> Tensors:
    tensors: Tensors = {}
    for number in range(first, first + count):
        tensors |= decoder_layer(f"layers.{number}", sizes, random, bias=False, head_norm=head_norm)
    return tensors


DFLASH_MASK = 60
"""The last token of a tiny target."""
BLOCK_SIZE = 5


def dflash(directory: Path, target: Path, *, seed: int = 0, layers: int = 2, **options: Any) -> None:
    """Saves a DFlash as its authors do, whose mask is the last token; ``options`` change its config.json."""
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
        "dflash_config": {"mask_token_id": sizes["vocab_size"] - 1, "target_layer_ids": taps},
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


def peagle(
    directory: Path,
    target: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    draft_vocab: int = 40,
    taps: Sequence[int] = (1, 2, 4),
) -> None:
    """Saves a P-EAGLE as vLLM's speculators project does, whose mask is the last token."""
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
        "eagle_aux_hidden_state_layer_ids": list(taps),
        "embed_requires_grad": True,
        "fc_norm": True,
        "mask_token_id": vocab - 1,
        "norm_before_fc": False,
        "norm_before_residual": True,
        "norm_output": False,
        "speculators_config": {"algorithm": "peagle", "verifier": {"name_or_path": str(target)}},
        "speculators_model_type": "peagle",
        "transformer_layer_config": {**sizes, "model_type": "llama", "num_hidden_layers": layers},
    }
    save_module(directory, tensors, config)
