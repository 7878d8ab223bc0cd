"""Every speculative method, as users would set it, with tiny modules for a tiny target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from paceline.models import ModelConfig
from paceline.speculation import proposers
from tests.draft_checkpoints import tiny_eagle, tiny_eagle3, tiny_medusa
from tests.draft_checkpoints_block import dflash, peagle
from tests.draft_checkpoints_mtp import deepseek_mtp
from tests.support.checkpoints import perturb
from tests.support.letters import write_letters
from tests.support.vocabularies import renumbered

HEADS = 7
"""Medusa's, hence its deepest draft."""

WRITERS: dict[str, Callable[[Path, ModelConfig, Path], Any]] = {
    "eagle": lambda path, target, _: tiny_eagle(path, target),
    "eagle3": lambda path, target, _: tiny_eagle3(path, target, draft_vocab_size=33, taps=(0, 1, 2)),
    "medusa": lambda path, target, _: tiny_medusa(
        path, target, heads=HEADS, rows=33, vllm=True, file="model.safetensors"
    ),
    "mtp": lambda path, _, sizes: deepseek_mtp(path, sizes),
    "p_eagle": lambda path, _, sizes: peagle(path, sizes, draft_vocab=33, taps=(0, 1, 2)),
    "dflash": lambda path, _, sizes: dflash(path, sizes, block_size=8),
}
"""Writes a module: (its directory, the target's config, the directory of a Llama of the target's sizes)."""

METHODS: dict[str, dict[str, Any]] = {
    "draft_model": {"method": "draft_model", "model": "near"},
    "draft_model tree": {"method": "draft_model", "model": "near", "draft_top_k": 3, "draft_max_nodes": 8},
    "ngram": {"method": "ngram", "prompt_lookup_min": 1, "prompt_lookup_max": 3},
    "suffix": {"method": "suffix"},
    "token_recycling": {"method": "token_recycling", "token_recycling_nodes": 12},
    "lookahead": {"method": "lookahead", "lookahead_ngram": 2},
    "eagle": {"method": "eagle", "model": "eagle"},
    "eagle tree": {"method": "eagle", "model": "eagle", "draft_top_k": 6, "draft_max_nodes": 16},
    "eagle3": {"method": "eagle3", "model": "eagle3"},
    "eagle3 tree": {"method": "eagle3", "model": "eagle3", "draft_top_k": 6, "draft_max_nodes": 16},
    "mtp": {"method": "mtp", "model": "mtp"},
    "mtp tree": {"method": "mtp", "model": "mtp", "draft_top_k": 4},
    "medusa": {"method": "medusa", "model": "medusa", "draft_top_k": 8},
    "p_eagle": {"method": "p_eagle", "model": "p_eagle"},
    "dflash": {"method": "dflash", "model": "dflash"},
    "early_exit": {"method": "early_exit", "early_exit_layers": 1},
    "early_exit tree": {"method": "early_exit", "early_exit_layers": 1, "draft_top_k": 4},
    "slem": {"method": "slem", "model": "twin"},
    "tli": {"method": "tli", "model": "twin"},
    "composite": {"method": "composite", "model": "near"},
}
"""A row of the matrix -> its options. What a method drafts is chain or tree, so that some have two rows."""


def registered() -> set[str]:
    """The methods of the package; tests register further ones."""
    return {name for name in proposers if proposers[name].__module__.startswith("paceline.")}


def write_modules(directory: Path, target: ModelConfig, sizes: Path) -> dict[str, Path]:
    """Saves a module of each kind, and a draft of other tokens than those of ``sizes``; returns where.

    ``sizes`` is the directory of a Llama of the target's sizes, which gets a tokenizer.
    """
    for name, write in WRITERS.items():
        write(directory / name, target, sizes)
    write_letters(sizes, target.vocab_size)
    perturb(sizes, directory / "close", 0.03)
    renumbered(directory / "close", directory / "twin")
    return {**{name: directory / name for name in (*WRITERS, "twin")}, "tokenizer": sizes}
