"""Knows a draft model's own token sequences, seat by seat: what they are, and how much of them its K/V cover."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from paceline.core.batch import Int32
from paceline.core.step import DraftTrees
from paceline.runner import ModelRunner, RowSpec, RowState, place
from paceline.speculation.base import OwnMemory


class OwnTokens:
    """Rows by the target's seat numbers. ``fed`` leading tokens of a row have K/V in its pages, drafted ones too.

    A sequence that no longer fits goes on with its last half, which is fed again.
    """

    def __init__(self, memory: OwnMemory, runner: ModelRunner) -> None:
        self.seats, self.cache, self.runner = memory.seats, memory.cache, runner
        self.seats.longest[:] = self.seats.max_len
        self.fed, self._settled = (np.zeros(self.seats.capacity, dtype=np.int32) for _ in range(2))
        self._groups = list(range(len(self.cache.groups)))
        self._vocab_size = runner.model.embedding.tokens.weight.shape[0]
        self._unsure = set[int]()
        """Seats whose K/V were being computed when something raised: they may be NaN."""

    def write(self, seat: int, settled: Sequence[int], behind: Sequence[int]) -> bool:
        """Adds settled tokens to a row, and those behind them in place of the ones before; what differs is not fed.

        False if the row was full: then ``behind`` counts as settled too.
        """
        row, first = self.seats.tokens[seat], int(self._settled[seat])
        settled, behind = ([token for token in some if token < self._vocab_size] for some in (settled, behind))
        ids = np.array([*settled, *behind], dtype=np.int32)
        end = first + len(ids)
        if end >= self.seats.max_len:
            self._keep_half(seat, np.concatenate([row[:first], ids]))
            return False
        known = row[first : max(first, int(self.fed[seat]))][: len(ids)]
        differ = np.flatnonzero(known != ids[: len(known)])
        same = first + (int(differ[0]) if len(differ) else len(known))
        self.fed[seat] = min(int(self.fed[seat]), same, max(0, end - 1))  # the last one's row is always needed
        row[first:end] = ids
        self._settled[seat], self.seats.num_tokens[seat] = first + len(settled), end
        return True

    def _keep_half(self, seat: int, ids: Int32) -> None:
        kept = ids[-(self.seats.max_len // 2) :]
        self.forget(seat)
        self.seats.tokens[seat, : len(kept)] = kept
        self._settled[seat] = self.seats.num_tokens[seat] = len(kept)

    def room(self, seat: int) -> int:
        """Tokens that may be drafted behind the known ones."""
        return int(self.seats.max_len - self.seats.num_tokens[seat])

    def lacking(self, seat: int) -> int:
        """Known tokens that are to be fed."""
        fed = int(self.fed[seat])
        if not all(group.keeps(np.array([seat]), np.array([fed])) for group in self.cache.groups):
            self._release(seat)  # the window has moved on
        return int(self.seats.num_tokens[seat] - self.fed[seat])

    def reserve(self, seat: int, end: int) -> bool:
        """Whether slots [0, end) have pages now."""
        return self.cache.reserve(seat, end, self._groups)

    def feed_known(self, seats: Int32, ends: Int32) -> torch.Tensor:
        """f[R, V] logits behind the known tokens of the rows that are fed whole: up to ``ends`` [B]."""
        sampled = ends == self.seats.num_tokens[seats]
        nothing = np.zeros(len(seats), dtype=np.int32)
        state = RowState(seats, ends, self.fed[seats], nothing.astype(np.int64), sampled, nothing)
        return self._forward(RowSpec(), state, DraftTrees.empty(len(seats)), ends)

    def feed_drafted(self, seats: Int32, tokens: Int32) -> torch.Tensor:
        """f[B, V] logits behind drafts ``tokens`` [B, K], of which the last ones are fed."""
        known, level = self.seats.num_tokens[seats], tokens.shape[1] - 1
        ends = known + np.int32(level + 1)
        self.seats.tokens[seats, ends - 1] = tokens[:, level]
        whole = np.full(len(seats), level + 1, dtype=np.int32)
        indices = np.zeros(len(seats), dtype=np.int64)
        state = RowState(seats, known, known, indices, np.ones(len(seats), dtype=np.bool_), whole)
        spec = RowSpec(known=False, first_node=level, num_nodes=1)
        return self._forward(spec, state, DraftTrees.chains(tokens, whole), ends)

    def _forward(self, spec: RowSpec, state: RowState, drafts: DraftTrees, ends: Int32) -> torch.Tensor:
        seats = set(state.seats.tolist())
        self._unsure |= seats
        rows = place(spec, state, drafts, self.seats, self.runner.groups)
        logits = self.runner.forward(rows.batch).logits
        self.fed[state.seats] = ends
        self._unsure -= seats
        return logits

    def keep(self, seats: Int32) -> None:
        """Lets go of pages that no known token will read again; where nothing is retained, of all."""
        known = np.minimum(self.fed[seats], self.seats.num_tokens[seats])
        self.cache.commit(seats, known, self._groups)
        if not self.cache.kind.retains:
            self.fed[seats] = 0

    def forget(self, seat: int, *, broken: bool = False) -> None:
        """Empties a row and gives back its pages; ``broken``: what is in them may be NaN."""
        if broken:
            self._unsure.add(seat)
        self._release(seat)
        self._settled[seat] = self.seats.num_tokens[seat] = 0

    def _release(self, seat: int) -> None:
        self.fed[seat] = 0
        if self.cache.torn:
            self.mend()
        elif seat in self._unsure:
            self.cache.clear(seat)
        else:
            self.cache.release(seat)
        self._unsure.discard(seat)

    def mend(self) -> None:
        """Makes the books of the pages anew where an exception cut a change of them short."""
        if self.cache.torn:
            self.fed[:] = 0
            self.cache.reset()
            self._unsure.clear()
