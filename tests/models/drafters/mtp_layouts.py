"""MTP modules in each published layout, and what each computes, line by line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from paceline.models import CausalLM
from tests.draft_checkpoints_mtp import deepseek_mtp, own_mtp, read_sizes, speculators_mtp, tiny_mimo
from tests.models.drafters.straight import StraightLayer, Tensors, rms_norm
from tests.support.zoo import tiny


@dataclass(frozen=True)
class Layout:
    """Where a module lies, and how its maker calls its parts and joins its rows."""

    directory: Path
    target: Path
    prefix: str
    layer: str
    token: str
    hidden: str
    project: str
    norm: str
    hidden_first: bool = False
    feeds_normed: bool = True


def mimo(path: Path) -> Layout:
    tiny_mimo(path, num_modules=2)
    names = ("token_layernorm", "hidden_layernorm", "input_proj", "final_layernorm")
    return Layout(path, path, "model.mtp_layers.0.", "", *names, hidden_first=True)


def qwen(path: Path) -> Layout:
    own_mtp(path, num_layers=2)
    return Layout(path, path, "mtp.", "layers.0.", "pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "norm")


def deepseek(path: Path) -> Layout:
    tiny(path, "llama")
    deepseek_mtp(path / "mtp", path)
    names = ("enorm", "hnorm", "eh_proj", "shared_head.norm")
    return Layout(path / "mtp", path, "model.layers.2.", "", *names, feeds_normed=False)


def speculators(path: Path) -> Layout:
    tiny(path, "qwen3")
    speculators_mtp(path / "mtp", path)
    names = ("token_layernorm", "hidden_layernorm", "input_proj", "final_layernorm")
    return Layout(path / "mtp", path, "mtp_layers.0.", "", *names)


LAYOUTS = {make.__name__: make for make in (mimo, qwen, deepseek, speculators)}


class StraightModule:
    """The same module line by line."""

    def __init__(self, layout: Layout, target: CausalLM) -> None:
        self.layout, self.config = layout, read_sizes(layout.target)
        tensors = load_file(layout.directory / "model.safetensors")
        self.layer = StraightLayer(tensors, layout.prefix + layout.layer, self.config)
        self.tensors: Tensors = {
            name.removeprefix(layout.prefix): tensor.double()
            for name, tensor in tensors.items()
            if name.startswith(layout.prefix)
        }
        self.table, self.head = target.embedding.tokens.weight.double(), target.head.weight.double()

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.tensors[f"{name}.weight"], self.config["rms_norm_eps"])

    def forward(self, tokens: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens at slots 1, 2, ... and the hidden row before each -> logits, and what the next row reads."""
        parts = [self.norm(self.layout.token, self.table[tokens]), self.norm(self.layout.hidden, hidden)]
        joined = torch.cat(parts[::-1] if self.layout.hidden_first else parts, -1)
        x = joined @ self.tensors[f"{self.layout.project}.weight"].T
        x = self.layer.forward(x, 1 + torch.arange(len(tokens)))
        normed = self.norm(self.layout.norm, x)
        return normed @ self.head.T, normed if self.layout.feeds_normed else x
