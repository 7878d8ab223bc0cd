"""Samples all rows with one native call; controls that offer no edits run in torch before it.

Shape letters: R rows, V vocabulary, C copied rows, P processors before temperature.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paceline.core.batch import Int32, Int64, SampleRows
from paceline.core.outputs import TokenLogprobs
from paceline.kernels.native import library
from paceline.kernels.native.checks import DTYPES
from paceline.kernels.native.sampling import Edits, NativeSampling, SampleCall, SeatControls
from paceline.sampling import logprobs
from paceline.sampling.edits import EditList
from paceline.sampling.processors import Editing
from paceline.sampling.processors.min_p import MinP
from paceline.sampling.processors.temperature import Temperature
from paceline.sampling.processors.top_k import TopK
from paceline.sampling.processors.top_p import TopP
from paceline.sampling.scores import process, take_rows
from paceline.sampling.state import SamplingState

Bool = npt.NDArray[np.bool_]
FUSED = (Temperature, MinP, TopK, TopP)
"""The processors that the native call contains, in its order; all others must come before them."""


class NativeSampler:
    """Chooses the tokens of ``TorchSampler``, for logits on the CPU of the types that kernels know."""

    def __init__(self, state: SamplingState) -> None:
        self._state = state
        before = state.processors[: -len(FUSED)]
        self._editors = [processor if isinstance(processor, Editing) else None for processor in before]
        self._needs_copy = np.array([editor is None for editor in self._editors], dtype=bool)
        controls = SeatControls(*(getattr(state, item.name) for item in fields(SeatControls)))
        self._call = SampleCall(controls, state.vocab_size)
        self._memory = torch.empty(0, state.vocab_size)

    def logprobs(self, logits: Tensor, rows: list[int], tokens: list[int], top: list[int]) -> list[TokenLogprobs]:
        return logprobs.in_native(logits, rows, tokens, top)

    def best(self, logits: Tensor, count: int) -> tuple[Int32, npt.NDArray[np.float64]]:
        return logprobs.best_in_native(logits, count)

    def edits(self, seats: Int32) -> bool:
        return bool(self._state.active[seats, : len(self._editors)].any())

    def can_plan(self, rows: SampleRows, *, at_once: bool) -> bool:
        acting = self._acting(rows)
        return not acting.any() or (at_once and not acting[:, self._needs_copy].any())

    def native(self, rows: SampleRows, *, at_once: bool) -> NativeSampling | None:
        """As every sampler's; None also if a control without edits needs torch before the call."""
        acting = self._acting(rows)
        if not acting.any():
            return NativeSampling(self._call, None)
        if not at_once or acting[:, self._needs_copy].any():
            return None
        return NativeSampling(self._call, self._edits(rows, acting))

    def sample(self, logits: Tensor, rows: SampleRows) -> Int64:
        logits = logits if logits.stride(-1) == 1 else logits.contiguous()
        acting = self._acting(rows)
        if not acting.any():
            return self._call(logits, rows.seats, rows.output_index)
        copied: Bool = np.any(acting[:, self._needs_copy], axis=1)
        if not copied.any():
            return self._call(logits, rows.seats, rows.output_index, edits=self._edits(rows, acting))
        edits = self._edits(rows, acting & ~copied[:, None])
        chosen, copy = np.flatnonzero(copied), np.cumsum(copied) - 1
        copy[~copied] = -1
        scores = self._copied(logits, chosen)
        process(self._state, scores, take_rows(rows, chosen), len(self._editors))
        return self._call(logits, rows.seats, rows.output_index, edits=edits, copies=scores, copy=copy)

    def _acting(self, rows: SampleRows) -> Bool:
        """[R, P]: which of the processors before temperature act on which row."""
        acting: Bool = self._state.active[rows.seats, : len(self._editors)]
        return acting

    def _edits(self, rows: SampleRows, acting: Bool) -> Edits:
        edits = EditList(len(rows))
        for editor, acts in zip(self._editors, acting.T.tolist(), strict=True):
            if editor is not None and any(acts):
                editor.edit(rows, [row for row, act in enumerate(acts) if act], edits)
        return edits.collected()

    def _copied(self, logits: Tensor, chosen: Int64) -> Tensor:
        """f32[C, V]: the chosen rows, in memory that the next call uses again: new memory costs more than the copying.

        A sampler belongs to one engine, which samples one step at a time.
        """
        if len(self._memory) < len(chosen):
            self._memory = torch.empty(len(chosen), logits.shape[1])
        copy = self._memory[: len(chosen)]
        if len(chosen) == len(logits):
            return copy.copy_(logits)
        for place, row in enumerate(chosen.tolist()):
            copy[place].copy_(logits[row])
        return copy


def takes(state: SamplingState, dtype: torch.dtype) -> bool:
    """Whether logits of a type can be sampled here, with these processors."""
    fits = state.device.type == "cpu" and dtype in DTYPES
    return fits and tuple(map(type, state.processors[-len(FUSED) :])) == FUSED and library.reason() is None
