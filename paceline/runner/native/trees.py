"""Records how draft trees grow and are pruned: what is likeliest of the best tokens behind each node of a level."""

from __future__ import annotations

import ctypes

import numpy as np
import torch

from paceline.core.batch import Int32, Int64
from paceline.kernels.native.step_structures import GrowTree, PruneTree
from paceline.kernels.native.structures import LogprobsArgs, Matrix, address
from paceline.runner.native.buffers import DraftBuffers, StateBuffers
from paceline.runner.native.prepared_rows import PreparedRows


class BestTokens:
    """The struct that finds the ``most`` best tokens of every sampled row, in the order of their numbers."""

    def __init__(self, logits: torch.Tensor, index: Int64, most: int) -> None:
        """``index``: [R] the row of ``logits`` [any, V] that each sampled row has."""
        count, size = len(index), logits.shape[1]
        self._index, self._logits = index, logits
        self._tokens, self._top = np.zeros(count, dtype=np.int64), np.full(count, most, dtype=np.int64)
        self.log_sums, self._own = np.zeros(count, dtype=np.float64), np.zeros(count, dtype=np.float32)
        self._ranks = np.zeros(count, dtype=np.int64)
        self.tokens: Int32 = np.zeros((count, most), dtype=np.int32)
        self.logits = np.zeros((count, most), dtype=np.float32)
        arrays = (index, self._tokens, self._top, self.log_sums, self._own, self._ranks, self.tokens, self.logits)
        self.structure = LogprobsArgs(Matrix.of(logits), 0, size, most, *map(address, arrays))


class TreeGrowth:
    """The structs of one level: best tokens of every parent's row, then the ``width`` best paths of each request."""

    def __init__(
        self,
        logits: torch.Tensor,
        index: Int64,
        rows: PreparedRows,
        width: int,
        *,
        state: StateBuffers,
        draft: DraftBuffers,
        level: int,
        shared: bool,
    ) -> None:
        """``index``: as of ``BestTokens``."""
        most = min(width, logits.shape[1])
        self.top = BestTokens(logits, index, most)
        parents = max(width, draft.tokens.shape[1])
        self._room = np.zeros(parents * most, dtype=np.float64)
        self.structure = GrowTree(
            level=level, width=width, most=most, shared=shared, draft=ctypes.addressof(draft.structure)
        )
        self.structure.depth, self.structure.broken = address(state.depth), address(state.broken)
        self.structure.limit, self.structure.sample_start = address(state.limit), address(rows.sample_start)
        self.structure.top_tokens, self.structure.top_logits = address(self.top.tokens), address(self.top.logits)
        self.structure.log_sums, self.structure.room = address(self.top.log_sums), address(self._room)


class TreePruning:
    """The struct that leaves the ``num_nodes`` likeliest nodes of each tree."""

    def __init__(self, draft: DraftBuffers, num_nodes: int) -> None:
        self._room = np.zeros(draft.tokens.shape[1], dtype=np.int32)
        self.structure = PruneTree(
            num_nodes=num_nodes, draft=ctypes.addressof(draft.structure), room=address(self._room)
        )
