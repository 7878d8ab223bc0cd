"""Times the linears, norms and gates of a model's pass in several checkouts with built libraries; writes raw JSON.

No attention; random weights in huge pages. Checkouts take turns within a round, each pass after a plain reading of the
same bytes, since what memory gives drifts by the minute. Each is a process of its own, which sleeps between its turns:
threads that still spin for a while would take a core from whoever comes next.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from paceline.core import machine
from paceline.kernels.native import region, structures
from paceline.kernels.native.linear import arguments
from paceline.kernels.native.packing import PackedLinear, kinds, pack
from paceline.kernels.native.structures import Code, Matrix, Operation
from paceline.runner.native.arena import Arena

MOST_LOGITS = 16
UNTOLD = ("out", "checkouts", "serve")
"""Options that say nothing of what was measured."""


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


def read_parts(packed: PackedLinear) -> list[torch.Tensor]:
    """The weights, and scales by group where they lie apart."""
    grouped = packed.scale is not None and packed.scale.dim() > 1
    return [packed.weight, packed.scale] if grouped and packed.scale is not None else [packed.weight]


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
            self._add(Code.GATE, structures.GateArgs(*halves, Matrix.of(gated), rows, shape.ffn, 0))
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
        self._add(Code.RMS_NORM, structures.NormArgs(*matrices, self._rows, size, self._gain.data_ptr(), None, 1e-5))

    def _linear(self, x: torch.Tensor, packed: PackedLinear, out: torch.Tensor) -> None:
        self._kept.append(out)
        self._add(Code.LINEAR, arguments(x, packed, out))


class Probe:
    """Reads the weights and does nothing with them."""

    def __init__(self, layers: list[list[PackedLinear]]) -> None:
        self._sum = torch.zeros(1, dtype=torch.int32)
        parts = [part for layer in layers for packed in layer for part in read_parts(packed)]
        self._structs = [
            structures.ReadArgs(part.data_ptr(), part.nbytes // 128 * 128, self._sum.data_ptr()) for part in parts
        ]
        steps = [Operation(Code.READ, ctypes.addressof(struct)) for struct in self._structs]
        self.operations = (Operation * len(steps))(*steps)


def seconds(work: Pass | Probe, threads: int) -> float:
    started = time.perf_counter()
    region.submit(work.operations, num_threads=threads)
    return time.perf_counter() - started


def serve(options: argparse.Namespace) -> None:
    """Answers each number of rows on the standard input by seconds of a probe and a pass; first tells of its bytes."""
    shape = SHAPES[options.shape]
    layers = packed_layers(dataclasses.replace(shape, layers=options.layers or shape.layers), options.kind)
    probe, warm_up = Probe(layers), Probe(layers[-1:])
    work: dict[int, Pass] = {}
    print(sum(part.nbytes for layer in layers for packed in layer for part in read_parts(packed)), flush=True)
    for line in sys.stdin:
        one = work.setdefault(int(line), Pass(shape, layers, int(line)))
        seconds(warm_up, options.threads)
        repeats = 1 if options.shape == "M" else 10
        pairs = [[seconds(each, options.threads) for each in (probe, one)] for _ in range(repeats)]
        print(json.dumps([statistics.median(times) for times in zip(*pairs, strict=True)]), flush=True)


class Side:
    """A checkout's process."""

    def __init__(self, checkout: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", *sys.argv[1:]],
            env={**os.environ, "PYTHONPATH": str(checkout.resolve())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("a process without pipes")
        self._asked, self._told = self._process.stdin, self._process.stdout
        self.num_bytes = int(self._answer())

    def turn(self, rows: int) -> list[float]:
        print(rows, file=self._asked, flush=True)
        pair: list[float] = json.loads(self._answer())
        return pair

    def _answer(self) -> str:
        return self._told.readline()


def arguments_of_command() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkouts", nargs="+", required=True, help="NAME=DIRECTORY of each")
    parser.add_argument("--shape", choices=list(SHAPES), default="M")
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--kind", choices=list(kinds), default="int8")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = arguments_of_command()
    if options.serve:
        serve(options)
        return
    sides = {name: Side(Path(path)) for name, _, path in (text.partition("=") for text in options.checkouts)}
    found: dict[str, list[list[float]]] = {}
    for number in range(options.rounds + 1):
        for rows in options.rows:
            for name, side in sides.items():
                pair = side.turn(rows)
                if number:
                    found.setdefault(f"{name} {rows}", []).append(pair)
    for name, pairs in found.items():
        probed, took = (statistics.median(times) for times in zip(*pairs, strict=True))
        speeds = [sides[name.split()[0]].num_bytes / time / 1e9 for time in (took, probed)]
        print(f"{name:>12} rows {took * 1e3:9.3f} ms {speeds[0]:6.1f} GB/s, probed {speeds[1]:6.1f}")
    record = {
        "machine": {"processor": machine.cpu_model(), "load": os.getloadavg()},
        "options": {
            key: str(value) for key, value in vars(options).items() if key not in ("out", "checkouts", "serve")
        },
        "bytes": {name: side.num_bytes for name, side in sides.items()},
        "seconds_of_probe_and_pass": found,
    }
    options.out.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
