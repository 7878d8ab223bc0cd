"""What the native kernels compute, in plain torch: the oracle of their tests; knows nothing of speed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional

from paceline.kernels.native.heads import Angles, HeadNorms
from paceline.kernels.native.packing import PackedLinear, kinds, quantised_kinds, unpack
from paceline.kernels.native.pools import Pools
from paceline.kernels.native.visibility import Visibility


def quantised(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[T, in] -> integers in [-127, 127] as float32[T, in], and their scales, float32[T, 1].

    The scale of a row with a number that is not finite is NaN, that of one below 1e-30 zero; both have zeros.
    """
    wide = x.float()
    most = wide.abs().amax(1, keepdim=True)
    scale = torch.where(wide.isfinite().all(1, keepdim=True), torch.where(most < 1e-30, 0.0, most / 127), torch.nan)
    fine = scale > 0
    steps = (torch.where(fine, wide, 0.0) * (1 / torch.where(fine, scale, 1.0))).round()
    return steps, scale


def linear(x: torch.Tensor, packed: PackedLinear) -> torch.Tensor:
    """[T, in] -> [T, out] of x's type, summed in float64."""
    weight = unpack(packed).double()
    if packed.kind not in quantised_kinds:
        y = functional.linear(x.to(kinds[packed.kind].activation_dtype).double(), weight)
    else:
        steps, scale = quantised(x)
        y = functional.linear(steps.double(), weight) * scale
    return (y if packed.bias is None else y + packed.bias[: packed.out_features]).to(x.dtype)


def int8_linear(x: torch.Tensor, packed: PackedLinear) -> torch.Tensor:
    """``linear`` of an int8 matrix with the very roundings of the kernels, which therefore must agree bit for bit."""
    assert packed.kind == "int8"
    assert packed.scale is not None
    steps, scale = quantised(x)
    column = packed.scale[: packed.out_features]
    weight = (unpack(packed) / torch.where(column > 0, column, 1.0)[:, None]).round()
    sums = functional.linear(steps.double(), weight.double()).float()  # integers below 2^53 are exact in any order
    y = sums * (scale * column)
    return (y if packed.bias is None else y + packed.bias[: packed.out_features]).to(x.dtype)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, *, epsilon: float) -> torch.Tensor:
    """[T, D] -> [T, D] of x's type, computed in float64."""
    wide = x.double()
    return (wide * (wide.square().mean(1, keepdim=True) + epsilon).rsqrt() * weight).to(x.dtype)


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, epsilon: float
) -> torch.Tensor:
    """[T, D] -> [T, D] of x's type, computed in float64."""
    wide_bias = None if bias is None else bias.double()
    return functional.layer_norm(x.double(), x.shape[1:], weight.double(), wide_bias, epsilon).to(x.dtype)


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """[T, H, D] with angles [T, R] -> [T, H, D] of x's type, computed in float64; the first sines are negated."""
    size = cosine.shape[1]
    turned, kept = x.double().split((size, x.shape[2] - size), dim=2)
    y = turned * cosine[:, None].double() + turned.roll(size // 2, dims=2) * sine[:, None].double()
    return torch.cat((y, kept), dim=2).to(x.dtype)


def write_heads(
    qkv: torch.Tensor,
    pools: Pools,
    cells: torch.Tensor,
    *,
    angles: Angles | None = None,
    norms: HeadNorms | None = None,
) -> torch.Tensor:
    """[T, (H + 2 KV) * head_dim] -> queries [T, H * head_dim] of its type; writes keys and values. Rounds once."""
    _, kv_heads, page_size, head_dim = pools[0].shape
    heads = qkv.double().unflatten(1, (-1, head_dim))
    q, k, v = heads.split((heads.shape[1] - 2 * kv_heads, kv_heads, kv_heads), 1)
    if norms is not None:
        q, k = (
            x * (x.square().mean(2, keepdim=True) + norms.epsilon).rsqrt() * weight.double()
            for x, weight in ((q, norms.query), (k, norms.key))
        )
    if angles is not None:
        rows = torch.arange(len(qkv)) if angles.rows is None else angles.rows
        q, k = (rotate(x, angles.cosine[rows], angles.sine[rows]) for x in (q, k))
    for pool, values in zip(pools, (k, v), strict=True):
        pool[cells // page_size, :, cells % page_size] = values.to(pool.dtype)
    queries: torch.Tensor = q.flatten(1)
    return queries.to(qkv.dtype)


def seen_slots(seen: Visibility, row: int, request: int) -> list[int]:
    """Slots that a row sees, in order of position."""
    bits = "".join(f"{word % 2**64:064b}"[::-1] for word in seen.tree_bits[row].tolist())
    behind = [int(seen.context[request]) + i for i, bit in enumerate(bits) if bit == "1"]
    first = 0 if seen.first_visible is None else int(seen.first_visible[row])
    return [*range(int(seen.visible[row])), *behind][first:]


def attend(
    q: torch.Tensor, pools: Pools, seen: Visibility, *, scale: float, softcap: float | None = None
) -> torch.Tensor:
    """[T, H, head_dim] -> the same of its type, computed in float64, a row at a time."""
    page_size, outputs = pools[0].shape[2], torch.empty_like(q)
    for request in range(len(seen.context)):
        for row in range(int(seen.row_start[request]), int(seen.row_start[request + 1])):
            slots = torch.tensor(seen_slots(seen, row, request))
            pages = torch.from_numpy(seen.page_table[request]).long()[slots // page_size]
            k, v = (pool[pages, :, slots % page_size].double() for pool in pools)  # [S, KV, head_dim]
            grouped = q[row].double().unflatten(0, (k.shape[1], -1))
            scores = torch.einsum("kgd,skd->kgs", grouped, k) * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            outputs[row] = torch.einsum("kgs,skd->kgd", scores.softmax(-1), v).flatten(0, 1).to(q.dtype)
    return outputs


def activate(x: torch.Tensor, activation: str, *, up: torch.Tensor | None = None) -> torch.Tensor:
    """[T, D] -> [T, D] of x's type, computed in float64."""
    y = activations[activation](x.double())
    return (y if up is None else y * up.double()).to(x.dtype)


def gather(
    table: torch.Tensor, index: torch.Tensor | None = None, *, scale: float = 1.0, offset: int = 0
) -> torch.Tensor:
    """[N, D], i64[T] -> [T, D] of the table's type; without an index all rows."""
    rows = table if index is None else table[index + offset]
    return (rows.float() * scale).to(table.dtype)


_tanh = partial(functional.gelu, approximate="tanh")
activations: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    **dict.fromkeys(("silu", "swish"), functional.silu),
    "relu": functional.relu,
    **dict.fromkeys(("gelu", "gelu_python"), functional.gelu),
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"), _tanh),
}
