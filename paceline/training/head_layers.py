"""Knows the layers that heads are made of, with Llama's names, and attention that drafts from many places at once."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from paceline.training.head import HeadShape, Places


class RmsNorm(nn.Module):
    """In float32, whatever it is given."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


def rms_norm(size: int, shape: HeadShape) -> RmsNorm:
    return RmsNorm(size, shape.eps)


class GatedMlp(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class HeadAttention(nn.Module):
    """Projections of an attention whose input may be wider than its output."""

    def __init__(self, shape: HeadShape, *, width: int, bias: bool = False, head_norm: bool = False) -> None:
        super().__init__()
        self.head_dim, self.theta = shape.head_dim, shape.rope_theta
        self.q_proj = nn.Linear(width, shape.num_heads * shape.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, shape.num_kv_heads * shape.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, shape.num_kv_heads * shape.head_dim, bias=bias)
        self.o_proj = nn.Linear(shape.num_heads * shape.head_dim, shape.hidden_size, bias=False)
        if head_norm:
            self.q_norm, self.k_norm = rms_norm(shape.head_dim, shape), rms_norm(shape.head_dim, shape)
        self.head_norm = head_norm

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim)

    def query(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[..., heads, head_dim] of x [..., width] at positions [...]."""
        q = self._heads(self.q_proj(x))
        q = self.q_norm(q) if self.head_norm else q
        return rotate(q, positions, self.theta)

    def key_value(self, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Twice [..., kv_heads, head_dim]."""
        k = self._heads(self.k_proj(x))
        k = rotate(self.k_norm(k) if self.head_norm else k, positions, self.theta)
        return k, self._heads(self.v_proj(x))


def rotate(x: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary positions on x [..., heads, head_dim], of halves as Llama has them."""
    half = x.shape[-1] // 2
    rates = theta ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = positions[..., None, None].float() * rates
    cos, sin = angles.cos(), angles.sin()
    first, second = x[..., :half].float(), x[..., half:].float()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def attend(
    query: torch.Tensor,
    context: tuple[torch.Tensor, torch.Tensor],
    own: tuple[torch.Tensor, torch.Tensor] | None,
    places: Places,
) -> torch.Tensor:
    """Attention of the drafts at N places: each sees its row's context up to its place, and what is its own.

    Args:
        query: [B, N, S, heads, head_dim].
        context: keys and values [B, T, kv_heads, head_dim].
        own: keys and values [B, N, J, kv_heads, head_dim], all of which its S queries see; None is none.

    Returns:
        [B, N, S, heads * head_dim].
    """
    batch, count, width, heads, dim = query.shape
    keys, values = context
    groups = heads // keys.shape[2]
    q = query.unflatten(3, (-1, groups)).permute(0, 3, 1, 4, 2, 5) * dim**-0.5  # [B, Hkv, N, G, S, d]
    seen = torch.arange(keys.shape[1], device=keys.device) <= places.index[..., None]  # [B, N, T]
    scores = q.flatten(2, 4) @ keys.permute(0, 2, 3, 1)
    scores = scores.unflatten(2, (count, groups * width)).float()
    scores = scores.masked_fill(~seen[:, None, :, None, :], float("-inf"))
    if own is not None:
        own_keys, own_values = (one.permute(0, 3, 1, 2, 4) for one in own)  # [B, Hkv, N, J, d]
        own_scores = q.flatten(3, 4) @ own_keys.transpose(-1, -2)
        scores = torch.cat([scores, own_scores.float()], dim=-1)
    chances = functional.softmax(scores, dim=-1).to(values.dtype)  # [B, Hkv, N, G * S, T + J]
    length = keys.shape[1]
    out = (chances[..., :length].flatten(2, 3) @ values.permute(0, 2, 1, 3)).unflatten(2, (count, groups * width))
    if own is not None:
        out = out + chances[..., length:] @ own_values
    out = out.unflatten(3, (groups, width)).permute(0, 2, 4, 1, 3, 5)
    joined: torch.Tensor = out.reshape(batch, count, width, heads * dim)
    return joined


class Recursion:
    """One attention layer run again and again from many places: a step sees the first step's keys up to its place,
    and its own of the steps since then, as a drafter does that goes on from what it drafted.
    """

    def __init__(self, attention: HeadAttention, context: torch.Tensor, places: Places) -> None:
        """``context`` [B, T, width]: the first step's input at every place of the rows."""
        self.attention, self.places, self.taken = attention, places, 0
        positions = torch.arange(context.shape[1], device=context.device).expand(context.shape[:2])
        self.context = attention.key_value(context, positions)
        self.own: list[tuple[torch.Tensor, torch.Tensor]] = []

    def step(self, x: torch.Tensor) -> torch.Tensor:
        """The attention's output [B, N, H] for the next step's input x [B, N, width]."""
        positions = self.places.index + self.taken
        if self.taken:
            self.own.append(self.attention.key_value(x, positions))
        self.taken += 1
        own = None
        if self.own:
            keys, values = zip(*self.own, strict=True)
            own = torch.stack(keys, dim=2), torch.stack(values, dim=2)
        query = self.attention.query(x, positions).unsqueeze(2)
        out: torch.Tensor = self.attention.o_proj(attend(query, self.context, own, self.places).squeeze(2))
        return out
