"""Records how the next level of draft trees is chosen: the likeliest paths of the best tokens behind each node."""

from __future__ import annotations

import ctypes

import numpy as np
import torch

from paceline.kernels.native.step_structures import GrowTree
from paceline.kernels.native.structures import LogprobsArgs, Matrix, address
from paceline.runner.native.buffers import DraftBuffers, StateBuffers
from paceline.runner.native.prepared_rows import PreparedRows


class TreeGrowth:
    """The structs of one level: best tokens of every parent's row, then the ``width`` best paths of each request."""

    def __init__(
        self,
        logits: torch.Tensor,
        rows: PreparedRows,
        width: int,
        *,
        state: StateBuffers,
        draft: DraftBuffers,
        level: int,
    ) -> None:
        count, size = rows.num_samples, logits.shape[1]
        most = min(width, size)
        self._index = np.arange(count, dtype=np.int64)
        self._tokens, self._top = np.zeros(count, dtype=np.int64), np.full(count, most, dtype=np.int64)
        self._sums, self._own = np.zeros(count, dtype=np.float64), np.zeros(count, dtype=np.float32)
        self._ranks = np.zeros(count, dtype=np.int64)
        self._top_tokens = np.zeros((count, most), dtype=np.int32)
        self._top_logits = np.zeros((count, most), dtype=np.float32)
        self._room = np.zeros(width * most, dtype=np.float64)
        arrays = (self._index, self._tokens, self._top, self._sums, self._own, self._ranks)
        self.top = LogprobsArgs(
            Matrix.of(logits), 0, size, most, *map(address, (*arrays, self._top_tokens, self._top_logits))
        )
        self.structure = GrowTree(level=level, width=width, most=most, draft=ctypes.addressof(draft.structure))
        self.structure.depth, self.structure.broken = address(state.depth), address(state.broken)
        self.structure.limit, self.structure.sample_start = address(state.limit), address(rows.sample_start)
        self.structure.top_tokens, self.structure.top_logits = address(self._top_tokens), address(self._top_logits)
        self.structure.log_sums, self.structure.room = address(self._sums), address(self._room)
