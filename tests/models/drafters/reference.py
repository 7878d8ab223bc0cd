"""Draft modules over one whole sequence, straight from the papers and in plain torch: no layers of Paceline."""

from __future__ import annotations

import torch
from torch.nn import functional

from tests.draft_checkpoints import HEADS, KV_HEADS, Tensors

EPSILON, THETA = 1e-5, 20000.0


def double(tensors: Tensors) -> Tensors:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float = EPSILON) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + epsilon).sqrt() * weight


def turned(heads: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """heads [T, N, dim], each pair of channels (i, i + dim / 2) turned by its angle."""
    half = heads.shape[-1] // 2
    angles = positions[:, None] * THETA ** (-torch.arange(half, dtype=torch.float64) / half)
    cosine, sine = angles.cos()[:, None], angles.sin()[:, None]
    first, second = heads[..., :half], heads[..., half:]
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)


def attention(weights: Tensors, name: str, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    def project(part: str, count: int) -> torch.Tensor:
        bias = weights.get(f"{name}.{part}_proj.bias")
        return functional.linear(x, weights[f"{name}.{part}_proj.weight"], bias).unflatten(-1, (count, -1))

    q, k, v = project("q", HEADS), project("k", KV_HEADS), project("v", KV_HEADS)
    if f"{name}.q_norm.weight" in weights:
        q, k = rms_norm(q, weights[f"{name}.q_norm.weight"]), rms_norm(k, weights[f"{name}.k_norm.weight"])
    q, k = turned(q, positions), turned(k, positions)
    k, v = (part.repeat_interleave(HEADS // KV_HEADS, 1) for part in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    later = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    attended = torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -torch.inf).softmax(-1), v).flatten(1)
    return functional.linear(attended, weights[f"{name}.o_proj.weight"], weights.get(f"{name}.o_proj.bias"))


def mlp(weights: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    gate, up = x @ weights[f"{name}.gate_proj.weight"].T, x @ weights[f"{name}.up_proj.weight"].T
    return (functional.silu(gate) * up) @ weights[f"{name}.down_proj.weight"].T


def layer(
    weights: Tensors, name: str, x: torch.Tensor, positions: torch.Tensor, *, normed: bool = True
) -> torch.Tensor:
    """A Llama layer; the first one of EAGLE-1 does not norm what it reads."""
    read = rms_norm(x, weights[f"{name}.input_layernorm.weight"]) if normed else x
    x = x + attention(weights, f"{name}.self_attn", read, positions)
    return x + mlp(weights, f"{name}.mlp", rms_norm(x, weights[f"{name}.post_attention_layernorm.weight"]))


def eagle3_features(weights: Tensors, low: torch.Tensor, middle: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Taps of the target, [T, D] each -> what the module reads."""
    taps = [low, middle, high]
    if "fc_norm.0.weight" in weights:
        taps = [rms_norm(tap, weights[f"fc_norm.{number}.weight"]) for number, tap in enumerate(taps)]
    joined = torch.cat(taps, -1)
    if "input_norm.weight" in weights:
        joined = rms_norm(joined, weights["input_norm.weight"])
    return joined @ weights["fc.weight"].T


def eagle3(
    weights: Tensors,
    embedded: torch.Tensor,
    features: torch.Tensor,
    positions: torch.Tensor,
    *,
    vocab_size: int,
    norm_before_residual: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embedded tokens [T, D] and the feature of the token before each -> (logits, before the last norm, after it)."""
    features_normed = rms_norm(features, weights["midlayer.hidden_norm.weight"])
    read = torch.cat((rms_norm(embedded, weights["midlayer.input_layernorm.weight"]), features_normed), -1)
    x = features_normed if norm_before_residual else features
    x = x + attention(weights, "midlayer.self_attn", read, positions)
    x = x + mlp(weights, "midlayer.mlp", rms_norm(x, weights["midlayer.post_attention_layernorm.weight"]))
    number = 1
    while f"layers.{number}.input_layernorm.weight" in weights:
        x = layer(weights, f"layers.{number}", x, positions)
        number += 1
    hidden = rms_norm(x, weights["norm.weight"])
    scores = hidden @ weights["lm_head.weight"].T
    if "d2t" not in weights:
        return scores, x, hidden
    logits = torch.full((len(scores), vocab_size), -torch.inf, dtype=torch.float64)
    for row, offset in enumerate(weights["d2t"].tolist()):
        logits[:, row + offset] = scores[:, row]
    return logits, x, hidden


def eagle(
    weights: Tensors, embedded: torch.Tensor, features: torch.Tensor, positions: torch.Tensor, head: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embedded tokens and the target's last hidden state of the token before each -> (logits, what stands for it)."""
    x = functional.linear(torch.cat((embedded, features), -1), weights["fc.weight"], weights.get("fc.bias"))
    x = layer(weights, "layers.0", x, positions, normed=False)
    number = 1
    while f"layers.{number}.input_layernorm.weight" in weights:
        x = layer(weights, f"layers.{number}", x, positions)
        number += 1
    return x @ head.T, x


def medusa(weights: Tensors, hidden: torch.Tensor, vocab_size: int) -> list[torch.Tensor]:
    """The target's hidden rows -> logits of each head."""
    found: list[torch.Tensor] = []
    while f"{len(found)}.0.linear.weight" in weights:
        x, place = hidden, 0
        while f"{len(found)}.{place}.linear.weight" in weights:
            name = f"{len(found)}.{place}.linear"
            x = x + functional.silu(functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias")))
            place += 1
        scores = x @ weights[f"{len(found)}.{place}.weight"].T
        if "token_map" in weights:
            logits = torch.full((len(scores), vocab_size), -torch.inf, dtype=scores.dtype)
            logits[:, weights["token_map"]] = scores
            scores = logits
        found.append(scores)
    return found
