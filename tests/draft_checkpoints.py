"""Writes tiny random draft modules exactly as they are published: names of tensors, shapes, config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from paceline.models import ModelConfig

SPREAD = 0.2
Tensors = dict[str, torch.Tensor]

HEADS, KV_HEADS, INTERMEDIATE = 4, 2, 48


class Random:
    """Random tensors of a seed, in float32."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def matrix(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator) * SPREAD

    def norm(self, size: int) -> torch.Tensor:
        return 1 + self.matrix(size)

    def some(self, count: int, of: int) -> torch.Tensor:
        """``count`` different numbers below ``of``, in order."""
        return torch.randperm(of, generator=self._generator)[:count].sort().values


def layer_tensors(
    random: Random, name: str, hidden: int, *, inputs: int, head_dim: int | None = None, biased: bool, head_norm: bool
) -> Tensors:
    """A Llama layer whose attention reads ``inputs`` numbers a row; without the norm before it."""
    dim = head_dim or hidden // HEADS
    sizes = {"q": HEADS * dim, "k": KV_HEADS * dim, "v": KV_HEADS * dim}
    made = {f"self_attn.{part}_proj.weight": random.matrix(size, inputs) for part, size in sizes.items()}
    made["self_attn.o_proj.weight"] = random.matrix(hidden, HEADS * dim)
    if biased:
        made |= {f"self_attn.{part}_proj.bias": random.matrix(size) for part, size in sizes.items()}
        made["self_attn.o_proj.bias"] = random.matrix(hidden)
    if head_norm:
        made |= {f"self_attn.{part}_norm.weight": random.norm(dim) for part in "qk"}
    made |= {f"mlp.{part}_proj.weight": random.matrix(INTERMEDIATE, hidden) for part in ("gate", "up")}
    made |= {"mlp.down_proj.weight": random.matrix(hidden, INTERMEDIATE)}
    made |= {"post_attention_layernorm.weight": random.norm(hidden)}
    return {f"{name}.{key}": tensor for key, tensor in made.items()}


def layer_config(target: ModelConfig, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": target.hidden_size,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 64,
        "num_attention_heads": HEADS,
        "num_hidden_layers": 1,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-05,
        "rope_theta": 20000.0,
        "tie_word_embeddings": False,
        "vocab_size": target.vocab_size,
        **more,
    }


def write(directory: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], file: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / file)
    (directory / "config.json").write_text(json.dumps(dict(config), indent=2))


def vocabulary(random: Random, rows: int, vocab_size: int) -> Tensors:
    """``d2t`` and ``t2d`` of as many tokens."""
    tokens = random.some(rows, vocab_size)
    reached = torch.zeros(vocab_size, dtype=torch.bool)
    reached[tokens] = True
    return {"d2t": tokens - torch.arange(rows), "t2d": reached}


def tiny_eagle3(
    directory: Path,
    target: ModelConfig,
    *,
    seed: int = 0,
    draft_vocab_size: int | None = None,
    taps: tuple[int, ...] | None = None,
    layers: int = 1,
    biased: bool = False,
    head_norm: bool = False,
    head_dim: int | None = None,
    target_size: int | None = None,
    embedding: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    speculators: bool = False,
    prefix: str = "",
    **flags: bool,
) -> Tensors:
    """Saves an EAGLE-3 module to ``directory``; returns its tensors under SafeAILab's names.

    Args:
        directory: where config.json and model.safetensors come to lie.
        target: config of the model that it drafts for.
        seed: of the weights.
        draft_vocab_size: tokens of its output matrix; None: all of the target's.
        taps: layers of the target; None: as the layout implies.
        layers: how many; those after the first are Llama's.
        biased: attention has biases.
        head_norm: query and key heads are normed (Qwen3).
        head_dim: of attention, if other than hidden size over heads.
        target_size: width of the target's features, if other than its own.
        embedding: a table of its own, or a copy of the target's.
        dtype: as which its tensors are stored.
        speculators: vLLM's layout instead of SafeAILab's.
        prefix: in front of all names but those of the head and of the vocabulary.
        flags: ``norm_before_residual``, ``norm_before_fc``, ``fc_norm``, ``norm_output``.
    """
    random, hidden = Random(seed), target.hidden_size
    width, rows = target_size or hidden, draft_vocab_size or target.vocab_size
    made: Tensors = {"fc.weight": random.matrix(hidden, 3 * width)}
    for layer in range(layers):
        name, inputs = ("midlayer", 2 * hidden) if layer == 0 else (f"layers.{layer}", hidden)
        made[f"{name}.input_layernorm.weight"] = random.norm(hidden)
        made |= layer_tensors(
            random, name, hidden, inputs=inputs, head_dim=head_dim, biased=biased, head_norm=head_norm
        )
    made |= {"midlayer.hidden_norm.weight": random.norm(hidden), "norm.weight": random.norm(hidden)}
    made["lm_head.weight"] = random.matrix(rows, hidden)
    if flags.get("norm_before_fc"):
        made["input_norm.weight"] = random.norm(3 * width)
    if flags.get("fc_norm"):
        made |= {f"fc_norm.{tap}.weight": random.norm(width) for tap in range(3)}
    made = {name: tensor.to(dtype) for name, tensor in made.items()}
    if draft_vocab_size is not None:
        made |= vocabulary(random, rows, target.vocab_size)
    if embedding is not None:
        made["embed_tokens.weight"] = embedding
    own: dict[str, Any] = {"head_dim": head_dim, "num_hidden_layers": layers, "attention_bias": biased}
    layer = layer_config(target, **{key: value for key, value in own.items() if value})
    more: dict[str, Any] = {"draft_vocab_size": rows, **flags}
    if taps is not None:
        more["eagle_aux_hidden_state_layer_ids"] = list(taps)
    stored = {_published(name, prefix, speculators): tensor for name, tensor in made.items()}
    config = _speculators("eagle3", layer, more) if speculators else {**layer, **_safeailab(more)}
    write(directory, stored, config, "model.safetensors")
    return made


def _published(name: str, prefix: str, speculators: bool) -> str:
    if speculators:
        name = name.replace("midlayer.", "layers.0.")
    return name if name.startswith(("lm_head.", "d2t", "t2d")) else prefix + name


def _safeailab(more: dict[str, Any]) -> dict[str, Any]:
    """Its config.json is Llama's; what SpecForge and NVIDIA add stands in an object of its own."""
    own = {key: value for key, value in more.items() if key != "draft_vocab_size"}
    shared = {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": more["draft_vocab_size"]}
    return shared | ({"eagle_config": {"use_aux_hidden_state": True, **own}} if own else {})


def _speculators(kind: str, layer: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": [f"{kind.capitalize()}Speculator"],
        "auto_map": {"": f"{kind}.{kind.capitalize()}SpeculatorConfig"},
        "speculators_model_type": kind,
        "speculators_config": {
            "algorithm": kind,
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
            "verifier": {"name_or_path": "someone/target", "architectures": ["LlamaForCausalLM"]},
        },
        "speculators_version": "0.9.0",
        "transformer_layer_config": layer,
        **more,
    }


def tiny_eagle(
    directory: Path,
    target: ModelConfig,
    *,
    seed: int = 0,
    layers: int = 1,
    biased: bool = True,
    embedding: torch.Tensor | None = None,
    speculators: bool = False,
) -> Tensors:
    """Saves an EAGLE-1 module to ``directory``; returns its tensors under SafeAILab's names.

    Args:
        directory, target, seed, layers, embedding: as of ``tiny_eagle3``.
        biased: ``fc`` has a bias.
        speculators: vLLM's layout, which has one layer, instead of SafeAILab's.
    """
    random, hidden = Random(seed), target.hidden_size
    made: Tensors = {"fc.weight": random.matrix(hidden, 2 * hidden)}
    if biased:
        made["fc.bias"] = random.matrix(hidden)
    for layer in range(layers):
        if layer:
            made[f"layers.{layer}.input_layernorm.weight"] = random.norm(hidden)
        made |= layer_tensors(random, f"layers.{layer}", hidden, inputs=hidden, biased=False, head_norm=False)
    if embedding is not None:
        made["embed_tokens.weight"] = embedding
    config = layer_config(target, num_hidden_layers=layers)
    if speculators:
        renamed = {name.replace("layers.0.", "transformer.").replace("fc.", "fusion_fc."): made[name] for name in made}
        more = {"fusion_bias": biased, "layernorms": False}
        write(directory, renamed, _speculators("eagle", config, more), "model.safetensors")
    else:
        own = {"architectures": ["LlamaForCausalLM"], "bias": biased}
        write(directory, made, {**config, **own}, "model.safetensors")
    return made


def tiny_medusa(
    directory: Path,
    target: ModelConfig,
    *,
    seed: int = 0,
    heads: int = 3,
    layers: int = 1,
    rows: int | None = None,
    prefix: str = "",
    vllm: bool = False,
    biased: bool = True,
    file: str = "medusa_lm_head.safetensors",
) -> Tensors:
    """Saves Medusa heads to ``directory``; returns their tensors under their authors' names.

    Args:
        directory, target, seed: as of ``tiny_eagle3``.
        heads: how many; config.json says 2, as uploaded ones do.
        layers: residual blocks of each head.
        rows: tokens of the output matrices, with a ``token_map``; None: all of the target's.
        prefix: in front of all names.
        vllm: vLLM's layout instead of the authors'.
        biased: whether residual blocks have a bias.
        file: where the tensors lie.
    """
    random, hidden = Random(seed), target.hidden_size
    made: Tensors = {}
    for head in range(heads):
        for layer in range(layers):
            made[f"{head}.{layer}.linear.weight"] = random.matrix(hidden, hidden)
            if biased:
                made[f"{head}.{layer}.linear.bias"] = random.matrix(hidden)
        made[f"{head}.{layers}.weight"] = random.matrix(rows or target.vocab_size, hidden)
    if rows is not None:
        made["token_map"] = random.some(rows, target.vocab_size)
    if vllm:
        kind = {
            "architectures": ["MedusaModel"],
            "model_type": "medusa",
            "num_heads": heads,
            "num_hidden_layers": layers,
        }
        config = {**kind, "hidden_size": hidden, "vocab_size": target.vocab_size, "medusa_fc_bias": biased}
        config["truncated_vocab_size"] = rows or target.vocab_size
    else:
        config = {"medusa_num_heads": 2, "medusa_num_layers": layers, "base_model_name_or_path": "someone/target"}
    stored = {prefix + (_of_vllm(name) if vllm else name): tensor for name, tensor in made.items()}
    write(directory, stored, config, file)
    return made


def _of_vllm(name: str) -> str:
    parts = name.split(".")
    if "linear" in parts:
        return f"blocks.{parts[0]}.layers.{parts[1]}.{parts[3]}"
    return f"lm_heads.{parts[0]}.weight" if len(parts) > 1 else name
