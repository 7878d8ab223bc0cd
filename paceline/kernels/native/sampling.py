"""Knows how native sampling is called; ``paceline.sampling.samplers.in_torch`` does the same in torch."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

from paceline.kernels.native import region, structures
from paceline.kernels.native.checks import check_rows
from paceline.kernels.native.structures import Code, Matrix, Operation

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

KINDS = {"top_k": np.int64, "seed": np.int64, "sample_index": np.int64, "greedy": np.bool_}
"""Of the arrays that are not float64."""
FEW = 2**15
"""Logits that one thread is done with before another one would have woken up."""


@dataclass(frozen=True, slots=True)
class SeatControls:
    """One number of each seat [S]. What kernels read are these very arrays, so what is written to them counts.

    ``top_k`` is 0, ``top_p`` 1 and ``min_p`` 0 where they keep every token; ``min_p_margin`` is the logarithm of
    ``min_p`` where that is above 0. Greedy seats take the best token, whatever else is said of them.
    """

    temperature: Float64
    top_p: Float64
    min_p: Float64
    min_p_margin: Float64
    top_k: Int64
    seed: Int64
    sample_index: Int64
    greedy: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        """Raises:
        TypeError, ValueError: arrays of other types or sizes.
        """
        for item, array in zip(fields(self), self.arrays(), strict=True):
            wanted = np.dtype(KINDS.get(item.name, np.float64))
            if not isinstance(array, np.ndarray) or array.dtype != wanted:
                raise TypeError(f"{item.name} must be an array of {wanted}")
            if array.shape != (self.num_seats,) or not array.flags.c_contiguous:
                raise ValueError(f"{item.name} has shape {array.shape}, not [{self.num_seats}] side by side")

    def arrays(self) -> tuple[np.ndarray, ...]:
        return tuple(getattr(self, item.name) for item in fields(self))

    @property
    def num_seats(self) -> int:
        return len(self.temperature)


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """An op that samples rows, and where their tokens are once it has run.

    ``structure`` may be copied into a list of ops, to run beside others, as long as the plan is kept. Ops that run
    before it in the same call may write the logits, and those behind it may read ``tokens``, which can be negative.
    """

    structure: structures.Sample
    tokens: Int64
    """[R]: the token of each row, -1 or -2; nothing before the op has run."""
    keep: tuple[object, ...]
    """Whatever else the struct points to."""

    @property
    def step(self) -> tuple[Code, ctypes.Structure]:
        """As ``region.run`` takes it."""
        return Code.SAMPLE, self.structure

    def run(self) -> Int64:
        """Runs the op by itself and returns ``tokens``.

        Raises:
            NativeUnavailableError: there are no native kernels.
            MemoryError: there was none for intermediate results.
        """
        if len(self.tokens):
            operations = (Operation * 1)(Operation(Code.SAMPLE, ctypes.addressof(self.structure)))
            few = len(self.tokens) * self.structure.size <= FEW
            region.submit(operations, num_threads=1 if few else None)
        return self.tokens


class SampleCall:
    """Samples rows of a vocabulary's size with the controls of seats."""

    def __init__(self, controls: SeatControls, vocab_size: int) -> None:
        self._controls = controls
        self._size = vocab_size
        self._blank = structures.Sample(size=vocab_size)
        for item, array in zip(fields(controls), controls.arrays(), strict=True):
            setattr(self._blank, item.name, array.ctypes.data)

    def __call__(
        self,
        logits: torch.Tensor,
        seats: npt.NDArray[np.int32],
        output_index: Int64,
        *,
        edited: torch.Tensor | None = None,
        edit: Int64 | None = None,
    ) -> Int64:
        """int64[R]: what ``plan`` describes, run at once.

        Raises:
            TypeError, ValueError: arguments that do not fit.
            NativeUnavailableError: there are no native kernels.
        """
        return self.plan(logits, seats, output_index, edited=edited, edit=edit).run()

    def plan(
        self,
        logits: torch.Tensor,
        seats: npt.NDArray[np.int32],
        output_index: Int64,
        *,
        edited: torch.Tensor | None = None,
        edit: Int64 | None = None,
    ) -> SamplePlan:
        """An op that finds the token of each row of ``logits`` [R, V], -1 if it has a NaN or nothing but -inf.

        Row r belongs to seat ``seats[r]`` and decides output token ``output_index[r]``. Where ``edit[r]`` is not -1,
        row ``edit[r]`` of ``edited`` float32 [E, V] is sampled in its place; -2 if that allows no token. Logits and
        controls are read when the op runs, ``seats`` and the indexes too: they must keep their sizes and bounds.

        A row's token depends on nothing else, and is the same at every level and number of threads: the first of the
        largest float32 sums of score and Gumbel noise, whose logarithms are those of the C library.

        Raises:
            TypeError, ValueError: arguments that do not fit.
        """
        seats, output_index = np.ascontiguousarray(seats, np.int32), np.ascontiguousarray(output_index, np.int64)
        self._check(logits, seats, output_index, edited, edit)
        tokens = np.empty(len(seats), dtype=np.int64)
        struct = structures.Sample.from_buffer_copy(self._blank)
        struct.logits, struct.rows = Matrix.of(logits), len(seats)
        struct.edited, struct.edit = Matrix.of(edited), None if edit is None else edit.ctypes.data
        struct.seats, struct.output_index, struct.tokens = _addresses(seats, output_index, tokens)
        return SamplePlan(struct, tokens, (self._controls, logits, seats, output_index, edited, edit))

    def _check(
        self,
        logits: torch.Tensor,
        seats: npt.NDArray[np.int32],
        output_index: Int64,
        edited: torch.Tensor | None,
        edit: Int64 | None,
    ) -> None:
        check_rows("logits", logits, [len(seats), self._size])
        _check_indexes("seats", seats, self._controls.num_seats)
        if output_index.shape != seats.shape:
            raise ValueError(f"output_index has shape {output_index.shape}, not {seats.shape}")
        if edit is None:
            return
        check_rows("edited", edited, [None, self._size])
        assert edited is not None
        if edit.shape != seats.shape or edit.dtype != np.int64 or not edit.flags.c_contiguous:
            raise ValueError(f"edit must be {len(seats)} numbers of int64 side by side")
        _check_indexes("edit", edit + 1, len(edited) + 1)


def _check_indexes(name: str, indexes: np.ndarray, size: int) -> None:
    """Negative indexes are large ones when their sign is taken for a bit like the others."""
    if len(indexes) and int(indexes.view(f"u{indexes.itemsize}").max()) >= size:
        raise ValueError(f"{name} has {indexes.min()} to {indexes.max()}, of which there are only {size}")


def _addresses(*arrays: np.ndarray) -> tuple[int, ...]:
    return tuple(array.__array_interface__["data"][0] for array in arrays)
