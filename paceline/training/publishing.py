"""Knows the published layouts of heads: their config.json, and their tensors in bfloat16 safetensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from paceline.training.head import Head, HeadShape, Places, TargetStates
from paceline.training.vocabulary import DraftVocabulary
from paceline.training.workspace import write_json

SPECULATORS_VERSION = "0.9.0"
"""The release whose layout is written."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a head takes over of its target."""

    name: str
    config: Any
    """transformers' of the target."""
    taps: tuple[int, ...]
    vocabulary: DraftVocabulary
    embedding: torch.Tensor
    """[V, H]."""
    output: torch.Tensor
    """[V, H], the target's unembedding."""
    final_norm: torch.Tensor
    """[H]: the weight of the target's last norm, which its unembedding expects."""
    biased: bool
    """Whether the target's queries, keys and values have biases."""
    mask_token: int
    """Stands where a token is to be drafted, in heads that draft a block."""

    def unembedding(self, *, trained: bool) -> nn.Linear:
        """The target's rows of the draft vocabulary."""
        rows = self.output[self.vocabulary.ids.to(self.output.device)].detach().clone()
        layer = nn.Linear(rows.shape[1], rows.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(rows, requires_grad=trained)
        return layer

    def wanted(
        self, target: Any, states: TargetStates, places: Places, steps: int
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The target's logits [B, N, D] over the draft vocabulary for each draft token, and which count bool[B, N, K].

        A token does not count where the target's first choice cannot be drafted.
        """
        with torch.no_grad():
            logits = target.lm_head(states.hidden)
            inside = torch.ones_like(logits[..., :1], dtype=torch.bool)
            if not self.vocabulary.is_whole:
                inside = self.vocabulary.members.to(logits.device)[logits.argmax(dim=-1, keepdim=True)]
                logits = logits[..., self.vocabulary.ids.to(logits.device)]
            wanted = [places.rows(logits, step + 1) for step in range(steps)]
            can = torch.cat([places.rows(inside, step + 1) for step in range(steps)], dim=-1)
        return wanted, places.counted & can


def draft_vocabulary_tensors(vocabulary: DraftVocabulary) -> Mapping[str, torch.Tensor]:
    return {"d2t": vocabulary.offsets, "t2d": vocabulary.members}


def _layer_config(kind: str, given: Given, shape: HeadShape, *, layers: int) -> dict[str, Any]:
    return {
        "model_type": kind,
        "vocab_size": given.config.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": given.config.max_position_embeddings,
        "rms_norm_eps": shape.eps,
        "rope_theta": shape.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "attention_bias": False,
        "tie_word_embeddings": False,
    }


def speculators_config(
    kind: str, architecture: str, given: Given, shape: HeadShape, *, layer: str, tokens: int, layers: int = 1
) -> Mapping[str, Any]:
    """The part of a config.json that the layouts of speculators have in common; ``layer`` is the layers' model type."""
    return {
        "architectures": [architecture],
        "speculators_model_type": kind,
        "speculators_version": SPECULATORS_VERSION,
        "speculators_config": {
            "algorithm": kind,
            "proposal_methods": [
                {
                    "proposal_type": "greedy",
                    "speculative_tokens": tokens,
                    "verifier_accept_k": 1,
                    "accept_tolerance": 0.0,
                }
            ],
            "default_proposal_method": "greedy",
            "verifier": {"name_or_path": given.name, "architectures": given.config.architectures or []},
        },
        "transformer_layer_config": _layer_config(layer, given, shape, layers=layers),
        "draft_vocab_size": len(given.vocabulary.ids),
        "dtype": "bfloat16",
    }


def mimo_config(given: Given, shape: HeadShape) -> Mapping[str, Any]:
    """As MiMo-7B has it, of which the directory holds the module alone."""
    return {
        **_layer_config("mimo", given, shape, layers=given.config.num_hidden_layers),
        "architectures": ["MiMoForCausalLM"],
        "num_nextn_predict_layers": 1,
        "attention_bias": shape.biased,
        "tie_word_embeddings": bool(given.config.tie_word_embeddings),
        "dtype": "bfloat16",
    }


def medusa_config(given: Given, *, num_heads: int, num_layers: int) -> Mapping[str, Any]:
    """vLLM's, with one unembedding for all heads."""
    return {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "base_model_name_or_path": given.name,
        "hidden_size": given.config.hidden_size,
        "vocab_size": given.config.vocab_size,
        "truncated_vocab_size": len(given.vocabulary.ids),
        "num_heads": num_heads,
        "num_hidden_layers": num_layers,
        "original_lm_head": True,
        "medusa_fc_bias": False,
        "dtype": "bfloat16",
    }


def save_head(head: Head, directory: Path) -> None:
    """Writes config.json and model.safetensors, each whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().cpu().to(torch.bfloat16 if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in head.tensors().items()
    }
    new = directory / "model.safetensors.new"
    save_file(tensors, new, metadata={"format": "pt"})
    os.replace(new, directory / "model.safetensors")
    write_json(directory / "config.json", head.config())
    (directory / "model.safetensors").chmod((directory / "config.json").stat().st_mode)
