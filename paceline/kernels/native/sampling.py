"""Knows how native sampling is called; ``paceline.sampling.samplers.in_torch`` does the same in torch."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

from paceline.kernels.native import region, structures
from paceline.kernels.native.checks import are_rows, check_indexes, check_integers, check_rows
from paceline.kernels.native.structures import Code, Matrix, address

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

KINDS = {"top_k": np.int64, "seed": np.int64, "sample_index": np.int64, "greedy": np.bool_}
"""Of the arrays that are not float64."""


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


EDIT = np.dtype(
    [("token", np.int32), ("repetition", np.float32), ("first", np.float32), ("second", np.float32)], align=True
)
"""``paceline_edit``: logit x becomes (x > 0 ? x / repetition : x * repetition) - first - second, each step in float32.

An infinite ``first`` bans the token, whatever its logit.
"""


@dataclass(frozen=True, slots=True)
class Edits:
    """What becomes of single logits of rows before anything else; a row's edits are made one after the other."""

    start: Int64
    """[R + 1]: row r has ``edits[start[r] : start[r + 1]]``."""
    edits: np.ndarray
    """[E] of ``EDIT``."""
    allowed: Mapping[int, npt.NDArray[np.uint64]]
    """By row, if it may not choose every token: [ceil(V / 64)] words, whose bits are set where it may.

    The others are -inf before the row's edits are made.
    """


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """An op that samples rows, and where their tokens are once it has run.

    ``structure`` may be copied into a list of ops, to run beside others, as long as the plan is kept. Ops that run
    before it in the same call may write the logits, and those behind it may read ``tokens``, which can be negative.
    """

    structure: structures.SampleArgs
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
            few = len(self.tokens) * self.structure.size <= region.FEW
            region.run([self.step], num_threads=1 if few else None)
        return self.tokens


class SampleCall:
    """Samples rows of a vocabulary's size with the controls of seats."""

    def __init__(self, controls: SeatControls, vocab_size: int) -> None:
        self._controls = controls
        self._num_seats = controls.num_seats
        self._size = vocab_size
        self._blank = structures.SampleArgs(size=vocab_size)
        for item, array in zip(fields(controls), controls.arrays(), strict=True):
            setattr(self._blank, item.name, array.ctypes.data)

    def __call__(
        self,
        logits: torch.Tensor,
        seats: npt.NDArray[np.int32],
        output_index: Int64,
        *,
        edits: Edits | None = None,
        copies: torch.Tensor | None = None,
        copy: Int64 | None = None,
    ) -> Int64:
        """int64[R]: what ``plan`` describes, run at once.

        Raises:
            TypeError, ValueError: arguments that do not fit.
            NativeUnavailableError: there are no native kernels.
        """
        return self.plan(logits, seats, output_index, edits=edits, copies=copies, copy=copy).run()

    def plan(
        self,
        logits: torch.Tensor,
        seats: npt.NDArray[np.int32],
        output_index: Int64,
        *,
        edits: Edits | None = None,
        copies: torch.Tensor | None = None,
        copy: Int64 | None = None,
    ) -> SamplePlan:
        """An op that finds the token of each row of ``logits`` [R, V], -1 if it has a NaN or nothing but -inf.

        Row r belongs to seat ``seats[r]`` and decides output token ``output_index[r]``. Where ``copy[r]`` is not -1,
        row ``copy[r]`` of ``copies`` float32 [C, V] is sampled in its place; either is subject to ``edits``. -2 if they
        allow no token. Logits and controls are read when the op runs, all else too: it must keep its sizes and bounds.

        A row's token depends on nothing else, and is the same at every level and number of threads: the first of the
        largest float32 sums of score and Gumbel noise, whose logarithms are those of the C library.

        Raises:
            TypeError, ValueError: arguments that do not fit.
        """
        seats, output_index = np.ascontiguousarray(seats, np.int32), np.ascontiguousarray(output_index, np.int64)
        rows = len(seats)
        self._check(logits, seats, output_index)
        tokens = np.empty(rows, dtype=np.int64)
        struct = self.arguments(logits, seats, output_index, tokens)
        struct.rows = rows
        kept: list[object] = [self._controls, logits, seats, output_index]
        if copy is not None:
            self._check_copies(copies, copy, rows)
            struct.copies, struct.copy = Matrix.of(copies), address(copy)
            kept += (copies, copy)
        if edits is not None:
            kept.append(self.set_edits(struct, edits, rows))
        return SamplePlan(struct, tokens, tuple(kept))

    def arguments(
        self, logits: torch.Tensor, seats: npt.NDArray[np.int32], output_index: Int64, tokens: Int64
    ) -> structures.SampleArgs:
        """The native struct of a call over rows of these very arrays, which must outlive it: their number is set later.

        What they hold when it is run must be sound, as for a call.
        """
        struct = structures.SampleArgs.from_buffer_copy(self._blank)
        struct.logits = Matrix.of(logits)
        struct.seats, struct.output_index, struct.tokens = address(seats), address(output_index), address(tokens)
        return struct

    def _check(self, logits: torch.Tensor, seats: npt.NDArray[np.int32], output_index: Int64) -> None:
        if not are_rows(logits, len(seats), self._size):
            check_rows("logits", logits, [len(seats), self._size])
        check_indexes("seats", seats, self._num_seats)
        if output_index.shape != seats.shape:
            raise ValueError(f"output_index has shape {output_index.shape}, not {seats.shape}")

    def _check_copies(self, copies: torch.Tensor | None, copy: Int64, rows: int) -> None:
        found = check_rows("copies", copies, [None, self._size])
        check_integers("copy", copy, rows)
        check_indexes("copy", copy + 1, len(found) + 1)

    def set_edits(self, struct: structures.SampleArgs, edits: Edits | None, rows: int) -> object:
        """Points the struct of a call over so many rows at edits, or at none; returns what must be kept for it.

        Raises:
            ValueError: edits that do not fit.
        """
        struct.edit_start = struct.edits = struct.allowed = None
        if edits is None:
            return None
        check_integers("start", edits.start, rows + 1)
        found, start = edits.edits, edits.start
        if found.dtype != EDIT or found.ndim != 1 or not found.flags.c_contiguous:
            raise ValueError(f"edits must be a vector of {EDIT} side by side")
        if start[0] != 0 or start[-1] != len(found) or (start[1:] < start[:-1]).any():
            raise ValueError(f"start must go from 0 to the {len(found)} edits")
        check_indexes("edits", found["token"], self._size)
        struct.edit_start, struct.edits = address(start), found.ctypes.data  # it has many fields to describe
        if not edits.allowed:
            return edits
        pointers = np.zeros(rows, dtype=np.uint64)
        for row, words in edits.allowed.items():
            if not 0 <= row < rows:
                raise ValueError(f"allowed has row {row}, of which there are only {rows}")
            if words.dtype != np.uint64 or words.shape != (-(-self._size // 64),) or not words.flags.c_contiguous:
                raise ValueError(f"allowed has {words.dtype}{list(words.shape)} for row {row}, not a bit per token")
            pointers[row] = address(words)
        struct.allowed = address(pointers)
        return edits, tuple(edits.allowed.values()), pointers


@dataclass(frozen=True, slots=True)
class NativeSampling:
    """What samples some rows natively: the call of their seats' controls, and what their histories make of logits."""

    call: SampleCall
    edits: Edits | None
