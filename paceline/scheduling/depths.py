"""How deep the next step drafts for each running request, and how many nodes that takes."""

from __future__ import annotations

import numpy as np

from paceline.core.batch import Int32
from paceline.core.request import Request
from paceline.scheduling.seating import Seating
from paceline.speculation import draft_policies


class DraftDepths:
    """Asks the draft policy, only for requests that get drafts."""

    def __init__(self, seating: Seating, max_depth: int) -> None:
        self.policy = draft_policies["fixed"](max_depth)
        self._seating, proposer = seating, seating.proposer
        nodes = [0, *(proposer.num_nodes(depth) for depth in range(1, max_depth + 1))] if proposer else [0]
        self._nodes = np.array(nodes, dtype=np.int32)
        """Nodes by depth; asked for once, as the guard keeps to its first answer."""

    def num_nodes(self, depth: Int32) -> Int32:
        """Of drafts so deep, int32[B]."""
        nodes: Int32 = self._nodes[depth]
        return nodes

    def of_running(self, known: Int32) -> tuple[Int32, list[int]]:
        """How deep each running request may be drafted for, int32[running], and the numbers of those that are.

        ``known``: int32[running], their known tokens.
        """
        seating = self._seating
        seats = seating.running_seats
        if not seating.drafts:
            return np.zeros(len(seats), dtype=np.int32), []
        depth = self.policy.depths(seats, np.maximum(seating.last_slot[seats] - known, 0))
        drafting = [number for number, request in enumerate(seating.running) if request.group.speculate]
        if len(drafting) < len(seats):
            plain = np.ones(len(seats), dtype=bool)
            plain[drafting] = False
            depth[plain] = 0
        return depth, drafting

    def of(self, request: Request, budget: int) -> tuple[int, int]:
        """How deep a draft may be and how many nodes it takes; (0, 0) if none is of use or the budget is short."""
        seating = self._seating
        seat = np.array([request.seat], dtype=np.int32)
        room = np.maximum(seating.last_slot[seat] - seating.seats.num_tokens[seat], 0)
        depth = int(self.policy.depths(seat, room)[0])
        if depth <= 0 or not (request.group.speculate and seating.drafts):
            return 0, 0
        nodes = int(self._nodes[depth])
        return (depth, nodes) if nodes <= budget else (0, 0)
