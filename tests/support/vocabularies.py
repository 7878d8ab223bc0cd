"""Makes checkpoints that speak other tokens than a given one: padded, cut, or numbered anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.support.checkpoints import edit_json

BY_TOKEN = ("model.embed_tokens.weight", "lm_head.weight")


def resized(source: Path, out: Path, vocab_size: int) -> Path:
    """A copy whose vocabulary is cut, or padded with random rows; it keeps its tokenizer."""
    random = torch.Generator().manual_seed(vocab_size)

    def rows(table: torch.Tensor) -> torch.Tensor:
        more = torch.randn(max(0, vocab_size - len(table)), table.shape[1], generator=random)
        return torch.cat([table[:vocab_size], more.to(table.dtype)])

    _copied(source, out, rows)
    edit_json(out / "config.json", vocab_size=vocab_size)
    return out


def renumbered(source: Path, out: Path, *, seed: int = 0) -> Path:
    """The same model and the same texts, but each token has another id: a twin in other tokens."""
    size = json.loads((source / "config.json").read_text())["vocab_size"]
    place = torch.randperm(size, generator=torch.Generator().manual_seed(seed))

    def rows(table: torch.Tensor) -> torch.Tensor:
        moved = torch.empty_like(table)
        moved[place] = table
        return moved

    _copied(source, out, rows)
    values = json.loads((out / "tokenizer.json").read_text())
    values["model"]["vocab"] = {token: int(place[number]) for token, number in values["model"]["vocab"].items()}
    for token in values["added_tokens"]:
        token["id"] = int(place[token["id"]])
    (out / "tokenizer.json").write_text(json.dumps(values))
    config = json.loads((out / "tokenizer_config.json").read_text())
    config.pop("added_tokens_decoder", None)
    (out / "tokenizer_config.json").write_text(json.dumps(config))
    ends = {name: int(place[number]) for name, number in _special(out).items()}
    edit_json(out / "config.json", **ends)
    (out / "generation_config.json").unlink(missing_ok=True)
    return out


def _special(directory: Path) -> dict[str, int]:
    values = json.loads((directory / "config.json").read_text())
    return {name: values[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _copied(source: Path, out: Path, rows) -> None:
    shutil.copytree(source, out, dirs_exist_ok=True)
    for file in sorted(out.glob("*.safetensors")):
        tensors = load_file(file)
        for name in BY_TOKEN:
            if name in tensors:
                tensors[name] = rows(tensors[name]).contiguous()
        save_file(tensors, file, metadata={"format": "pt"})
