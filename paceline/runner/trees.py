"""Grows draft trees level by level: the likeliest paths of the best tokens behind each node, as ``csrc/step.h``."""

from __future__ import annotations

import numpy as np
import torch

from paceline.core.batch import Int32, Int64
from paceline.core.step import DraftTrees
from paceline.sampling import Pipeline


class GrowingTrees:
    """The trees of B requests, of up to N nodes each; a level is behind the one before it."""

    def __init__(self, num_requests: int, num_nodes: int) -> None:
        shape = num_requests, num_nodes
        self.tokens: Int32 = np.zeros(shape, dtype=np.int32)
        self.parents: Int32 = np.full(shape, -1, dtype=np.int32)
        self.counts: Int32 = np.zeros(num_requests, dtype=np.int32)
        self._scores = np.zeros(shape, dtype=np.float64)
        self._level_start: Int32 = np.full(num_requests, -1, dtype=np.int32)
        """[B] the first node of the last level; -1: the last known token."""

    @property
    def level_sizes(self) -> Int32:
        """[B] nodes of the last level."""
        sizes: Int32 = np.where(self._level_start < 0, 1, self.counts - self._level_start)
        return sizes

    def prune(self, num_nodes: int) -> None:
        """Leaves of each tree the ``num_nodes`` nodes of the best scores, of equals the first ones, in their order.

        No path scores more than a path that it goes on from, so that a node's ancestors stay with it. Nothing grows
        afterwards.
        """
        for number in np.flatnonzero(self.counts > num_nodes).tolist():
            count = int(self.counts[number])
            kept = np.sort(np.argsort(-self._scores[number, :count], kind="stable")[:num_nodes])
            numbers = np.full(count + 1, -1, dtype=np.int32)  # the last one is that of parent -1
            numbers[kept] = np.arange(len(kept))
            self.parents[number, : len(kept)] = numbers[self.parents[number, kept]]
            self.tokens[number, : len(kept)] = self.tokens[number, kept]
            self._scores[number, : len(kept)] = self._scores[number, kept]
            self.counts[number] = len(kept)

    def extend(self, pipeline: Pipeline, logits: torch.Tensor, owners: Int64, width: int, *, first: bool) -> Int64:
        """Adds ``width`` nodes to each tree that has rows in ``logits`` [R, V]; row r is a parent of ``owners[r]``'s.

        Returns the requests whose rows have no log-probabilities.
        """
        if not len(owners):
            return np.zeros(0, dtype=np.int64)
        most = min(width, logits.shape[1])
        tokens, scores = pipeline.best(logits, most)
        bad = []
        for number in np.unique(owners).tolist():
            rows = np.flatnonzero(owners == number)
            parent = int(self._level_start[number]) + np.arange(len(rows))
            before = 0.0 if first else self._scores[number, parent][:, None]
            paths = (before + scores[rows]).ravel()
            if np.isnan(paths).any():
                bad.append(number)
                continue
            best = np.argsort(-paths, kind="stable")[:width]
            start = int(self.counts[number])
            nodes = slice(start, start + len(best))
            self.tokens[number, nodes] = tokens[rows].ravel()[best]
            self.parents[number, nodes] = -1 if first else parent[best // most]
            self._scores[number, nodes] = paths[best]
            self._level_start[number], self.counts[number] = start, start + len(best)
        return np.array(bad, dtype=np.int64)

    def finished(self, counts: Int32) -> DraftTrees:
        return DraftTrees(self.tokens, self.parents, counts)
