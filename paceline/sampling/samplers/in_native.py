"""Samples all rows with one native call; controls that edit single logits run in torch before it.

Shape letters: R rows, V vocabulary, E edited rows.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paceline.core.batch import Int64, SampleRows
from paceline.kernels.native import library
from paceline.kernels.native.checks import DTYPES
from paceline.kernels.native.sampling import SampleCall, SamplePlan, SeatControls
from paceline.sampling.processors.min_p import MinP
from paceline.sampling.processors.temperature import Temperature
from paceline.sampling.processors.top_k import TopK
from paceline.sampling.processors.top_p import TopP
from paceline.sampling.scores import process, take_rows
from paceline.sampling.state import SamplingState

FUSED = (Temperature, MinP, TopK, TopP)
"""The processors that the native call contains, in its order; all others must come before them."""


class NativeSampler:
    """Chooses the tokens of ``TorchSampler``, for logits on the CPU of the types that kernels know."""

    def __init__(self, state: SamplingState) -> None:
        self._state = state
        self._num_edits = len(state.processors) - len(FUSED)
        controls = SeatControls(*(getattr(state, item.name) for item in fields(SeatControls)))
        self._call = SampleCall(controls, state.vocab_size)
        self._memory = torch.empty(0, state.vocab_size)

    def plan(self, logits: Tensor, rows: SampleRows) -> SamplePlan | None:
        """As every sampler's; None if a control needs torch before the op."""
        if logits.stride(-1) != 1 or self._edited(rows).any():
            return None
        return self._call.plan(logits, rows.seats, rows.output_index)

    def sample(self, logits: Tensor, rows: SampleRows) -> Int64:
        logits = logits if logits.stride(-1) == 1 else logits.contiguous()
        edited = self._edited(rows)
        if not edited.any():
            return self._call(logits, rows.seats, rows.output_index)
        chosen, edit = np.flatnonzero(edited), np.cumsum(edited) - 1
        edit[~edited] = -1
        scores = self._copied(logits, chosen)
        process(self._state, scores, take_rows(rows, chosen), self._num_edits)
        return self._call(logits, rows.seats, rows.output_index, edited=scores, edit=edit)

    def _edited(self, rows: SampleRows) -> npt.NDArray[np.bool_]:
        """[R]: whether a control changes single logits of the row."""
        edited: npt.NDArray[np.bool_] = np.any(self._state.active[rows.seats, : self._num_edits], axis=1)
        return edited

    def _copied(self, logits: Tensor, chosen: Int64) -> Tensor:
        """f32[E, V]: the chosen rows, in memory that the next call uses again: new memory costs more than the copying.

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
