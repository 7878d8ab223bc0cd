"""Knows how rows are gathered natively; ``paceline.kernels.reference.gather`` is the same in torch."""

from __future__ import annotations

import torch

from paceline.kernels.native import region, structures
from paceline.kernels.native.checks import check_apart, check_rows, check_vector, output
from paceline.kernels.native.structures import Code, Matrix, pointer


def gather(
    table: torch.Tensor,
    index: torch.Tensor | None = None,
    *,
    scale: float = 1.0,
    offset: int = 0,
    add: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """``scale * table[index + offset]``, [N, D] and i64[T] -> [T, D]; without an ``index`` all rows in order.

    Computed in float32 and rounded once. ``add`` adds it to what ``out`` holds.

    Raises:
        TypeError, ValueError: tensors that do not fit, or rows that the table does not have.
        NativeUnavailableError: there are no native kernels.
    """
    num_rows, size = check_rows("table", table, [None, None]).shape
    rows = num_rows
    if index is not None:
        rows = len(index) if index.dim() else 0
        check_vector("index", index, rows, dtype=torch.int64)
        if rows and not (int(index.min()) + offset >= 0 and int(index.max()) + offset < num_rows):
            raise ValueError(f"index reaches beyond the {num_rows} rows of the table")
    if add and out is None:
        raise ValueError("add needs an out to add to")
    y = output("out", out, table, (rows, size))
    check_apart("out", y, table=table, index=index)
    region.run([(Code.GATHER, arguments(table, y, index, scale=scale, offset=offset, add=add))])
    return y


def arguments(
    table: torch.Tensor, out: torch.Tensor, index: torch.Tensor | None, *, scale: float, offset: int, add: bool
) -> structures.GatherArgs:
    """The native struct; the tensors must outlive it."""
    matrices = Matrix.of(table), Matrix.of(out)
    return structures.GatherArgs(*matrices, pointer(index), out.shape[0], out.shape[1], offset, add, scale)
