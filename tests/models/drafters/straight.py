"""Computes draft modules line by line from the tensors of their files, as their makers describe them; in float64."""

from __future__ import annotations

from typing import Any

import torch

Tensors = dict[str, torch.Tensor]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight


def rotate(heads: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """[T, N, dim] at i64[T]."""
    dim = heads.shape[-1]
    angles = positions[:, None].double() * theta ** (-torch.arange(0, dim, 2).double() / dim)
    cosine, sine = torch.cat((angles, angles), -1).cos()[:, None], torch.cat((angles, angles), -1).sin()[:, None]
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine + torch.cat((-second, first), -1) * sine


class StraightLayer:
    """One layer under Llama's names behind ``prefix``; ``config`` is the config.json."""

    def __init__(self, tensors: Tensors, prefix: str, config: dict[str, Any]) -> None:
        self.tensors = {
            name.removeprefix(prefix): tensor.double() for name, tensor in tensors.items() if name.startswith(prefix)
        }
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.dim = config.get("head_dim") or config["hidden_size"] // self.heads
        self.epsilon = config["rms_norm_eps"]
        rope = config.get("rope_parameters") or {}
        self.theta = rope.get("rope_theta") or config["rope_theta"]

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.tensors[f"{name}.weight"].T
        bias = self.tensors.get(f"{name}.bias")
        return y if bias is None else y + bias

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.tensors[f"{name}.weight"], self.epsilon)

    def head_rows(self, kind: str, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Query or key heads, normed if the file has a norm, and rotated."""
        rows = self.linear(f"self_attn.{kind}_proj", x).view(len(x), -1, self.dim)
        if f"self_attn.{kind}_norm.weight" in self.tensors:
            rows = self.norm(f"self_attn.{kind}_norm", rows)
        return rotate(rows, positions, self.theta)

    def key_value(self, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value = self.linear("self_attn.v_proj", x).view(len(x), -1, self.dim)
        return self.head_rows("k", x, positions), value

    def attention(
        self, x: torch.Tensor, positions: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sees: torch.Tensor
    ) -> torch.Tensor:
        """``sees`` bool[rows, keys]."""
        query = self.head_rows("q", x, positions)
        rows = []
        for head in range(self.heads):
            of = head * self.kv_heads // self.heads
            scores = query[:, head] @ key[:, of].T / self.dim**0.5
            weights = scores.masked_fill(~sees, -torch.inf).softmax(-1)
            rows.append(weights @ value[:, of])
        return self.linear("self_attn.o_proj", torch.cat(rows, -1))

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.linear("mlp.gate_proj", x), self.linear("mlp.up_proj", x)
        return self.linear("mlp.down_proj", gate * torch.sigmoid(gate) * up)

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """A whole sequence; each row sees those before."""
        normed = self.norm("input_layernorm", x)
        sees = torch.ones(len(x), len(x), dtype=torch.bool).tril()
        x = x + self.attention(normed, positions, *self.key_value(normed, positions), sees)
        return x + self.mlp(self.norm("post_attention_layernorm", x))
