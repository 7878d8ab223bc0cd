"""The plan of a step, and the drafts for it.

Shape letters: B requests of the step, N draft nodes, D depth of a draft, V vocabulary, W words of ancestor bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import torch

from paceline.core.request import Request

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The plan of a step: which known tokens each request feeds, and how long a draft it may add."""

    requests: list[Request]
    seats: Int32  # [B]
    start: Int32  # [B] first slot fed = tokens already cached
    num_known: Int32  # [B] known tokens fed
    draft_depth: Int32  # [B] 0 unless the known tokens reach the end
    num_rounds: int = 1
    """How often the step may draft and verify, or decode plainly; each round goes on where the one before it ended."""

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def end(self) -> Int32:
        """[B] slot after the last known token fed."""
        return self.start + self.num_known

    def select(self, chosen: Int64 | slice) -> StepPlan:
        """The part of some of the requests, by rising numbers."""
        numbers = range(len(self))[chosen] if isinstance(chosen, slice) else chosen.tolist()
        return replace(
            self,
            requests=[self.requests[number] for number in numbers],
            seats=self.seats[chosen],
            start=self.start[chosen],
            num_known=self.num_known[chosen],
            draft_depth=self.draft_depth[chosen],
        )


@dataclass(frozen=True)
class DraftTrees:
    """One token tree per request. Node i's parent is a node before it, or -1 for the last known token."""

    tokens: Int32  # [B, N]
    parents: Int32  # [B, N]
    counts: Int32  # [B] nodes in use; the rest is padding
    probs: torch.Tensor | None = None
    """f32[B, N, V] the very numbers that each token was drawn from, given all nodes before it; None where each was
    certain, given those before.

    Siblings are in the order in which they were drawn. Drawn without replacement, each has a row of its own: its
    parent's distribution without the siblings before it, normalised anew.
    """

    @staticmethod
    def empty(num_requests: int) -> DraftTrees:
        nothing = np.zeros((num_requests, 0), dtype=np.int32)
        return DraftTrees(nothing, nothing, np.zeros(num_requests, dtype=np.int32))

    @staticmethod
    def chains(tokens: Int32, counts: Int32, probs: torch.Tensor | None = None) -> DraftTrees:
        """Chains: node i's parent is i - 1."""
        return DraftTrees(tokens, _chain_parents(*tokens.shape), counts, probs)

    @property
    def width(self) -> int:
        return int(self.tokens.shape[1])

    @cached_property
    def is_chain(self) -> bool:
        chain = _chain_parents(*self.tokens.shape)
        return self.parents is chain or bool((self.parents == chain).all())

    @cached_property
    def depths(self) -> Int32:
        """[B, N] 1 for a child of the last known token."""
        if self.is_chain:
            return _chain_depths(*self.tokens.shape)
        depths = np.ones(self.tokens.shape, dtype=np.int32)
        rows = np.arange(len(self.tokens))
        for node in range(self.width):
            parent = self.parents[:, node]
            depths[:, node] = np.where(parent < 0, 1, depths[rows, parent] + 1)
        return depths

    @cached_property
    def places(self) -> Int32:
        """[B, N] how many nodes before each one are as deep as it is."""
        places = np.zeros(self.tokens.shape, dtype=np.int32)
        if self.is_chain:
            return places
        rows, seen = np.arange(len(self.tokens)), np.zeros((len(self.tokens), self.width + 1), dtype=np.int32)
        for node in range(self.width):
            depth = self.depths[:, node]
            places[:, node] = seen[rows, depth]
            seen[rows, depth] += 1
        return places

    @property
    def deepest(self) -> Int32:
        """[B] the depth of each draft."""
        if self.is_chain or not self.width:
            return self.counts
        used = np.arange(self.width) < self.counts[:, None]
        found: Int32 = np.where(used, self.depths, 0).max(axis=1, initial=0).astype(np.int32)
        return found

    @cached_property
    def ancestor_bits(self) -> Int64:
        """[B, N, W] bit j of node i: j is i or an ancestor of i."""
        if self.is_chain:
            return _chain_bits(*self.tokens.shape)
        words = -(-self.width // 64)
        bits = np.zeros((*self.tokens.shape, words), dtype=np.int64)
        rows = np.arange(len(self.tokens))
        for node in range(self.width):
            parent = self.parents[:, node]
            if node:
                bits[:, node] = np.where((parent < 0)[:, None], 0, bits[rows, parent])
            bits[:, node, node // 64] |= _bit(node)
        return bits

    @cached_property
    def paths(self) -> Int32:
        """[B, N, D] tokens from the first draft level to the node itself; -1 pads."""
        if self.is_chain:
            return np.where(_up_to(self.width), self.tokens[:, None, :], np.int32(-1))
        depth = int(self.depths.max(initial=0))
        paths = np.full((*self.tokens.shape, depth), -1, dtype=np.int32)
        rows = np.arange(len(self.tokens))
        for node in range(self.width):
            parent = self.parents[:, node]
            if node:
                paths[:, node] = np.where((parent < 0)[:, None], -1, paths[rows, parent])
            paths[rows, node, self.depths[:, node] - 1] = self.tokens[:, node]
        return paths


@lru_cache(64)
def _chain_parents(num_requests: int, width: int) -> Int32:
    """[B, N]; it cannot be written to, and is the same object each time, by which a chain is known at once."""
    return np.broadcast_to(np.arange(-1, width - 1, dtype=np.int32), (num_requests, width))


@lru_cache(64)
def _chain_depths(num_requests: int, width: int) -> Int32:
    return np.broadcast_to(np.arange(1, width + 1, dtype=np.int32), (num_requests, width))


@lru_cache(64)
def _chain_bits(num_requests: int, width: int) -> Int64:
    bits = np.zeros((width, -(-width // 64)), dtype=np.int64)
    for node in range(width):
        bits[node:, node // 64] |= _bit(node)
    return np.broadcast_to(bits, (num_requests, *bits.shape))


@lru_cache(64)
def _up_to(width: int) -> npt.NDArray[np.bool_]:
    """[N, N] whether each place of a chain lies at or before a node."""
    return np.tri(width, dtype=bool)


def _bit(node: int) -> np.int64:
    """Through uint64, since bit 63 does not fit a positive int64."""
    return np.uint64(1 << node % 64).astype(np.int64)
