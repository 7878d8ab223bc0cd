"""Times the linears, norms and gates of a model's pass in several builds of the native library; writes raw JSON.

No attention; random weights in huge pages. Builds take turns within a round, each pass after a plain reading of the
same bytes, since what memory gives drifts by the minute. `--libraries` takes copies of kernels/native/_native.so.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from paceline.core import machine
from paceline.kernels.native import structures
from paceline.kernels.native.linear import arguments
from paceline.kernels.native.packing import PackedLinear, kinds, pack
from paceline.kernels.native.structures import Code, Matrix, Operation
from paceline.runner.native.arena import Arena

MOST_LOGITS = 16


@dataclass(frozen=True)
class Shape:
    dim: int
    layers: int
    qkv: int
    ffn: int
    vocabulary: int

    def linears(self) -> list[tuple[int, int]]:
        """[in, out] of a layer's."""
        return [(self.dim, self.qkv), (self.dim, self.dim), (self.dim, 2 * self.ffn), (self.ffn, self.dim)]


SHAPES = {"S": Shape(384, 8, 640, 1024, 8192), "M": Shape(1024, 24, 1536, 4864, 32000)}


def packed_layers(shape: Shape, kind: str) -> list[list[PackedLinear]]:
    """Every layer's matrices in memory of their own, and the head as the last layer; int4 models have an int8 head."""
    arena = Arena()
    made = [pack(torch.randn(outputs, inputs) * 0.02, kind) for inputs, outputs in shape.linears()]
    head = pack(torch.randn(shape.vocabulary, shape.dim) * 0.02, "int8" if kind == "int4" else kind)

    def copied(packed: PackedLinear) -> PackedLinear:
        scale = None if packed.scale is None else arena.copy(packed.scale)
        return dataclasses.replace(packed, weight=arena.copy(packed.weight), scale=scale)

    return [*([copied(packed) for packed in made] for _ in range(shape.layers)), [copied(head)]]


class Pass:
    """The steps of one pass over `rows` rows."""

    def __init__(self, shape: Shape, layers: list[list[PackedLinear]], rows: int) -> None:
        self._kept: list[object] = [layers]
        self._steps: list[Operation] = []
        self._rows = rows
        self._gain = torch.ones(shape.dim)
        self._residual = torch.randn(rows, shape.dim)
        sizes = (shape.dim, shape.qkv, shape.dim, 2 * shape.ffn, shape.ffn)
        normed, qkv, hidden, wide, gated = (torch.randn(rows, size).bfloat16() for size in sizes)
        for attention_in, attention_out, gate_up, down in layers[:-1]:
            self._norm(hidden, normed)
            self._linear(normed, attention_in, qkv)
            self._linear(qkv[:, : shape.dim], attention_out, hidden)
            self._norm(hidden, normed)
            self._linear(normed, gate_up, wide)
            halves = (Matrix.of(half) for half in wide.split(shape.ffn, 1))
            self._add(Code.GATE, structures.Gate(*halves, Matrix.of(gated), rows, shape.ffn, 0))
            self._linear(gated, down, hidden)
        self._norm(hidden, normed)
        self._linear(normed[:MOST_LOGITS], layers[-1][0], torch.empty(min(rows, MOST_LOGITS), shape.vocabulary))
        self._kept += [normed, qkv, hidden, wide, gated]
        self.operations = (Operation * len(self._steps))(*self._steps)

    def _add(self, code: Code, struct: ctypes.Structure) -> None:
        self._kept.append(struct)
        self._steps.append(Operation(code, ctypes.addressof(struct)))

    def _norm(self, x: torch.Tensor, out: torch.Tensor) -> None:
        matrices = map(Matrix.of, (x, self._residual, out))
        size = x.shape[1]
        self._add(Code.RMS_NORM, structures.Norm(*matrices, self._rows, size, self._gain.data_ptr(), None, 1e-5))

    def _linear(self, x: torch.Tensor, packed: PackedLinear, out: torch.Tensor) -> None:
        self._kept.append(out)
        self._add(Code.LINEAR, arguments(x, packed, out))


class Probe:
    """Reads the weights and does nothing with them."""

    def __init__(self, layers: list[list[PackedLinear]]) -> None:
        self._sum = torch.zeros(1, dtype=torch.int32)
        weights = [packed.weight for layer in layers for packed in layer]
        self._structs = [
            structures.Read(weight.data_ptr(), weight.nbytes // 128 * 128, self._sum.data_ptr()) for weight in weights
        ]
        steps = [Operation(Code.READ, ctypes.addressof(struct)) for struct in self._structs]
        self.operations = (Operation * len(steps))(*steps)


class Build:
    """A native library at its widest level."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path.resolve()))
        self._library.paceline_level_name.restype = ctypes.c_char_p
        self._library.paceline_run.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
        self._level = 0
        while self._library.paceline_level_name(self._level + 1) and self._library.paceline_level_supported(
            self._level + 1
        ):
            self._level += 1

    def seconds(self, work: Pass | Probe, threads: int, repeats: int) -> float:
        """The median of the repeats."""
        taken = []
        for _ in range(repeats):
            started = time.perf_counter()
            self._library.paceline_run(self._level, work.operations, len(work.operations), threads)
            taken.append(time.perf_counter() - started)
        return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--libraries", type=Path, nargs="+", required=True)
    parser.add_argument("--shape", choices=list(SHAPES), default="M")
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--kind", choices=list(kinds), default="int8")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    shape = dataclasses.replace(shape, layers=options.layers or shape.layers)
    layers = packed_layers(shape, options.kind)
    builds, probe = [Build(path) for path in options.libraries], Probe(layers)
    work = {rows: Pass(shape, layers, rows) for rows in options.rows}
    repeats = 1 if options.shape == "M" else 10
    found: dict[str, list[list[float]]] = {}
    for number in range(options.rounds + 1):
        for rows, one in work.items():
            for path, build in zip(options.libraries, builds, strict=True):
                pair = [build.seconds(each, options.threads, repeats) for each in (probe, one)]
                if number:
                    found.setdefault(f"{path.stem} {rows}", []).append(pair)
    read = sum(packed.weight.nbytes for layer in layers for packed in layer)
    for name, pairs in found.items():
        probed, took = (statistics.median(times) for times in zip(*pairs, strict=True))
        print(f"{name:>12} rows {took * 1e3:9.3f} ms {read / took / 1e9:6.1f} GB/s, probed {read / probed / 1e9:6.1f}")
    record = {
        "machine": {"processor": machine.cpu_model(), "load": os.getloadavg()},
        "options": {name: str(value) for name, value in vars(options).items()},
        "bytes": read,
        "seconds_of_probe_and_pass": found,
    }
    options.out.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
