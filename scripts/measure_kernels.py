"""Measures how fast native linears and attention read at a few rows, beside memory read plainly; writes raw JSON.

Rounds interleave everything, each with a probe of its own before and after, because what memory gives drifts by the
minute. Figures of a machine that does anything else at the time mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from ctypes import Structure
from functools import partial
from pathlib import Path

import numpy as np
import torch

from paceline.core import machine
from paceline.kernels.native import attention as native_attention
from paceline.kernels.native import library, region
from paceline.kernels.native.linear import arguments
from paceline.kernels.native.packing import PackedLinear, kinds, pack
from paceline.kernels.native.structures import Code
from paceline.kernels.native.visibility import Visibility

ROWS = (1, 4, 8, 16)
MIB = 2**20
PAGE_SIZE = 16
ATTENTION = {
    "ragged batch of 8": ([100, 200, 300, 450, 600, 700, 850, 1000], 1),
    "decoding at 512": ([512], 1),
    "decoding at 4096": ([4096], 1),
    "8 draft rows at 1000": ([1008], 8),
    "512 rows of a prompt": ([512], 512),
}
"""Slots of each request, and how many of the last ones are rows."""


def num_bytes(packed: PackedLinear) -> int:
    """What a pass has to read."""
    parts = (packed.weight, packed.scale, packed.sums)
    return sum(part.nbytes for part in parts if part is not None)


def copies(packed: PackedLinear, wanted_bytes: int) -> list[PackedLinear]:
    """As many matrices in memory of their own as make up the bytes, so that no cache holds them all."""
    parts = ("kind", "in_features", "out_features", "weight", "scale", "sums", "bias", "group_size")
    values = [getattr(packed, part) for part in parts]
    count = max(1, wanted_bytes // num_bytes(packed))
    return [PackedLinear(*(v.clone() if isinstance(v, torch.Tensor) else v for v in values)) for _ in range(count)]


def passes(matrices: Sequence[PackedLinear], num_rows: int) -> Callable[[], None]:
    """One native call that multiplies the same rows by every matrix; the steps only point to their tensors."""
    x = torch.randn(num_rows, matrices[0].in_features)
    out = torch.empty(num_rows, matrices[0].out_features)
    steps = [(Code.LINEAR, arguments(x, packed, out)) for packed in matrices]
    return partial(_run, steps, (x, out, matrices))


def seen_by(lengths: Sequence[int], rows: int) -> Visibility:
    """The last rows of each request, each seeing all up to itself; pages in no order."""
    ends = np.array(lengths, dtype=np.int32)
    num_pages = -(-int(ends.max()) // PAGE_SIZE)
    pages = np.random.default_rng(0).permutation(len(ends) * num_pages).astype(np.int32)
    return Visibility(
        row_start=np.arange(len(ends) + 1, dtype=np.int32) * rows,
        visible=np.concatenate([np.arange(end - rows, end, dtype=np.int32) + 1 for end in lengths]),
        context=ends,
        num_slots=ends,
        page_table=pages.reshape(len(ends), num_pages),
        tree_bits=np.zeros((len(ends) * rows, 0), dtype=np.int64),
    )


def layers_of_attention(lengths: Sequence[int], rows: int, options: argparse.Namespace) -> Callable[[], None]:
    """One native call that attends in every layer, each with pools of its own."""
    seen, (heads, kv_heads, head_dim) = seen_by(lengths, rows), options.attention
    visibility, shape = seen.arguments(), (seen.num_pages, kv_heads, PAGE_SIZE, head_dim)
    q, out = torch.randn(2, seen.num_rows, heads, head_dim).unbind(0)
    pools = [(torch.randn(shape), torch.randn(shape)) for _ in range(options.layers)]
    scale = head_dim**-0.5
    steps = [
        (Code.ATTENTION, native_attention.arguments(q, out, both, visibility, scale=scale, softcap=None))
        for both in pools
    ]
    return partial(_run, steps, (seen, visibility, q, out, pools))


def _run(steps: Sequence[tuple[Code, Structure]], _kept: object) -> None:
    region.run(steps)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(options: argparse.Namespace) -> dict[str, list[list[float]]]:
    """Per kind and rows or case of attention, each round's seconds: of the probe before, the work, the probe after."""
    memory = torch.ones(options.mebibytes * MIB // 4)
    weight = torch.randn(options.out_features, options.in_features)
    matrices = {kind: copies(pack(weight, kind), memory.nbytes) for kind in options.kinds}
    work = {f"{kind} {rows}": passes(many, rows) for kind, many in matrices.items() for rows in ROWS}
    attention = {name: layers_of_attention(*shape, options) for name, shape in ATTENTION.items()}
    found = rounds_of(work | attention, memory, options.rounds)
    for name in attention:
        took = [1e6 * took / options.layers for _, took, _ in found[name]]
        print(f"{name:<20} {min(took):7.0f} us a layer at best, {statistics.median(took):7.0f} in the middle")
    read = {kind: sum(map(num_bytes, many)) for kind, many in matrices.items()}
    report({name: found[name] for name in work}, read, memory.nbytes)
    return found


def rounds_of(work: dict[str, Callable[[], None]], memory: torch.Tensor, count: int) -> dict[str, list[list[float]]]:
    """Everything in turn, again and again; the first round only warms up."""
    found: dict[str, list[list[float]]] = {name: [] for name in work}
    for number in range(count + 1):
        for name, run in work.items():
            probes_and_work = [seconds(one) for one in (memory.sum, run, memory.sum)]
            if number:
                found[name].append(probes_and_work)
    return found


def report(found: dict[str, list[list[float]]], read: dict[str, int], probed: int) -> None:
    """Medians, for the eye; the raw figures are what counts."""
    for name, rounds in found.items():
        kind = name.split()[0]
        rates = [read[kind] / took / 1e9 for _, took, _ in rounds]
        shares = [read[kind] / took * (before + after) / (2 * probed) for before, took, after in rounds]
        one_row = found[f"{kind} {ROWS[0]}"]
        ratios = [took / first for (_, took, _), (_, first, _) in zip(rounds, one_row, strict=True)]
        share = statistics.median(shares)
        print(
            f"{name + ' rows':<14} {statistics.median(rates):6.1f} GB/s, {share:4.0%} of the probe, "
            f"{statistics.median(ratios):5.2f} times one row"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--mebibytes", type=int, default=256)
    parser.add_argument("--in-features", type=int, default=1024)
    parser.add_argument("--out-features", type=int, default=4864)
    parser.add_argument("--kinds", nargs="+", choices=list(kinds), default=list(kinds))
    shape = ("HEADS", "KV_HEADS", "HEAD_DIM")
    parser.add_argument("--attention", nargs=3, type=int, metavar=shape, default=[16, 4, 64])
    parser.add_argument("--layers", type=int, default=8, help="of attention, each with K/V of its own")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(options)
    record = {
        "machine": {"processor": machine.cpu_model(), "huge_pages": machine.huge_pages(), "load": os.getloadavg()},
        "torch": torch.__version__,
        "level": library.level(),
        "options": {name: str(value) for name, value in vars(options).items()},
        "seconds_of_probe_work_probe": found,
    }
    options.out.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
