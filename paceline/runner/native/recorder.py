"""Knows which op an operation on rows becomes, and which buffer its result lies in; nothing of layers or models.

Shape letters: T rows of a pass, R of them whose logits are needed. Buffers have room for ``capacity`` rows; a replay
uses the first T or R of them. All activations are float32.
"""

from __future__ import annotations

import ctypes
from collections import defaultdict

import torch

from paceline.kernels.native import gather, linear
from paceline.kernels.native.packing import PackedLinear
from paceline.kernels.native.program import Program
from paceline.kernels.native.structures import Code, ExpandArgs, GateArgs, Matrix, NormArgs, ScatterArgs, pointer
from paceline.runner.native.buffer_pool import BufferPool
from paceline.runner.native.sizes import check_size

TOKENS = "tokens"
"""All T rows."""
LOGITS = "logits"
"""The R rows whose logits are needed."""


class Recorder:
    """Records ops in the order in which they are to run."""

    def __init__(self, capacity: dict[str, int], pool: BufferPool | None = None) -> None:
        """``capacity``: rows per count that buffers have room for; ``pool``: where their memory comes from."""
        self.capacity, self._pool = capacity, pool or BufferPool()
        self._acquired: list[torch.Tensor] = []
        self.count = TOKENS
        """The rows that ops are over unless they say otherwise."""
        self._steps: list[tuple[Code, ctypes.Structure, str]] = []
        self._keep: list[object] = []
        self._free: dict[tuple[int, int], list[torch.Tensor]] = defaultdict(list)
        self._kind_of: dict[int, tuple[int, int]] = {}

    def finish(self) -> Program:
        self._pool.release(self._acquired)
        return Program(self._steps, self._keep)

    def add(self, code: Code, structure: ctypes.Structure, *keep: object, count: str | None = None) -> int:
        """Records an op; ``keep`` is what its struct points to. Returns its number."""
        self._steps.append((code, structure, self.count if count is None else count))
        self._keep.extend(keep)
        return len(self._steps) - 1

    def take(self, size: int, count: str | None = None) -> torch.Tensor:
        """float32[capacity, size], of unknown content; ``give`` lets others have it."""
        rows = self.capacity[self.count if count is None else count]
        kind = size, rows
        if self._free[kind]:
            return self._free[kind].pop()
        self._acquired.append(self._pool.acquire(rows * size))
        buffer = self._acquired[-1][: rows * size].view(rows, size)
        self._kind_of[buffer.data_ptr()] = kind
        return buffer

    def give(self, buffer: torch.Tensor) -> None:
        """Nothing recorded from now on reads what ``buffer`` holds."""
        self._free[self._kind_of[buffer.data_ptr()]].append(buffer)

    def linear(self, x: torch.Tensor, packed: PackedLinear, count: str | None = None) -> torch.Tensor:
        """-> [rows, out], in a new buffer."""
        check_size("input of a linear", x.shape[1], packed.in_features)
        out = self.take(packed.out_features, count)
        self.add(Code.LINEAR, linear.arguments(x, packed, out), x, packed, out, count=count)
        return out

    def norm(
        self,
        code: Code,
        x: torch.Tensor,
        out: torch.Tensor,
        *,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        epsilon: float,
        residual: torch.Tensor | None = None,
    ) -> None:
        """``out`` = norm of x, or of residual + x, which the residual becomes."""
        for part in (residual, out, weight[None], None if bias is None else bias[None]):
            check_size("norm", x.shape[1] if part is None else part.shape[1], x.shape[1])
        matrices = map(Matrix.of, (x, residual, out))
        sizes = (*x.shape, pointer(weight), pointer(bias), epsilon)
        self.add(code, NormArgs(*matrices, *sizes), x, residual, out, weight, bias)

    def activate(self, x: torch.Tensor, code: int, up: torch.Tensor | None) -> None:
        """x becomes activation(x), times ``up`` if that is given."""
        check_size("gate", x.shape[1] if up is None else up.shape[1], x.shape[1])
        self.add(Code.GATE, GateArgs(*map(Matrix.of, (x, up, x)), *x.shape, code), x, up)

    def scatter(self, x: torch.Tensor, out: torch.Tensor, index: torch.Tensor) -> None:
        """Rows of ``out`` by index become those of x."""
        check_size("row of a table", x.shape[1], out.shape[1])
        struct = ScatterArgs(Matrix.of(x), Matrix.of(out), pointer(index), x.shape[0], x.shape[1])
        self.add(Code.SCATTER, struct, x, out, index)

    def expand(self, x: torch.Tensor, columns: torch.Tensor, count: str | None = None) -> torch.Tensor:
        """x [rows, in] -> [rows, len(columns)]: columns by number, -inf where it is negative, in a new buffer."""
        out = self.take(len(columns), count)
        struct = ExpandArgs(Matrix.of(x), Matrix.of(out), pointer(columns), *out.shape)
        self.add(Code.EXPAND, struct, x, columns, out, count=count)
        return out

    def gather(
        self,
        table: torch.Tensor,
        out: torch.Tensor,
        index: torch.Tensor | None = None,
        *,
        scale: float = 1.0,
        offset: int = 0,
        add: bool = False,
        count: str | None = None,
    ) -> None:
        """``out`` becomes, or gains, rows of the table by index, or all its rows in order."""
        check_size("row of a table", table.shape[1], out.shape[1])
        structure = gather.arguments(table, out, index, scale=scale, offset=offset, add=add)
        self.add(Code.GATHER, structure, table, out, index, count=count)
