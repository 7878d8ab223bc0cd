"""Grows draft trees level by level, of tokens that are drawn behind each node; knows no models and no cache."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from paceline.core.batch import Int32, Int64, SampleRows
from paceline.core.step import DraftTrees
from paceline.sampling import NAN, Pipeline


class DrawnTrees:
    """The trees of B requests, of N nodes each while they grow, and what each node was drawn from.

    Every node has as many children as were asked for, so that a level starts at the same node of each request. Those
    that could not be drawn are not there in the end.
    """

    def __init__(self, num_requests: int, num_nodes: int) -> None:
        shape = num_requests, num_nodes
        self.tokens: Int32 = np.zeros(shape, dtype=np.int32)
        self.parents: Int32 = np.full(shape, -1, dtype=np.int32)
        self.counts: Int32 = np.zeros(num_requests, dtype=np.int32)
        self._drawn: npt.NDArray[np.bool_] = np.zeros(shape, dtype=np.bool_)
        self._probs: torch.Tensor | None = None
        self._level_start, self._level_end = -1, 0

    def extend(self, pipeline: Pipeline, logits: torch.Tensor, samples: SampleRows, owners: Int64, width: int) -> Int64:
        """Draws ``width`` nodes behind each row of ``logits`` [R, V]: those of the last level of ``owners`` [R].

        Returns the requests whose last known token has a row that is NaN. Behind other such rows a tree just ends, as
        they hang on tokens that were drawn.
        """
        if not len(owners):
            return np.zeros(0, dtype=np.int64)
        place = np.arange(len(owners)) - np.searchsorted(owners, owners)
        tokens, probs = pipeline.draft_distinct(logits, samples, width, place)
        if self._probs is None:
            self._probs = probs.new_zeros((*self.tokens.shape, probs.shape[-1]))
        first, start, owner = self._level_start < 0, self._level_end, owners[:, None]
        parent = (self._level_start + place)[:, None]
        node = start + place[:, None] * width + np.arange(width)
        good = tokens >= 0
        if not first:
            good &= self._drawn[owner, parent]
        self.tokens[owner, node], self.parents[owner, node] = np.where(good, tokens, 0), parent
        self._drawn[owner, node] = good
        where = torch.from_numpy(np.broadcast_to(owner, node.shape).copy()), torch.from_numpy(node)
        self._probs[where[0].to(probs.device), where[1].to(probs.device)] = probs
        self._level_start, self._level_end = start, int(node.max()) + 1
        self.counts[owners] = self._level_end
        return np.unique(owners[tokens[:, 0] == NAN]) if first else np.zeros(0, dtype=np.int64)

    def finished(self, counts: Int32) -> DraftTrees:
        """What was drawn; ``counts`` [B] are -1 of requests without a draft."""
        order = np.argsort(~self._drawn, axis=1, kind="stable")
        number = np.argsort(order, axis=1, kind="stable")  # of each node, the undrawn behind the others
        parents = np.take_along_axis(self.parents, order, axis=1)
        parents = np.where(parents < 0, -1, np.take_along_axis(number, np.maximum(parents, 0), axis=1))
        tokens = np.take_along_axis(self.tokens, order, axis=1)
        found = np.where(counts < 0, counts, self._drawn.sum(axis=1)).astype(np.int32)
        used = max(int(found.max(initial=0)), 0)
        probs = self._probs
        if probs is not None:
            taken = torch.from_numpy(order[:, :used]).to(probs.device)
            probs = probs[torch.arange(len(taken), device=probs.device)[:, None], taken]
        return DraftTrees(tokens[:, :used].copy(), parents[:, :used].astype(np.int32), found, probs)
