"""One of the models of a graph: its passes, its pages, and by which angles a call turns its heads."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from paceline.attention import LayerMap
from paceline.core.batch import Int32
from paceline.core.seats import Seats
from paceline.layers.rotary import Rotary
from paceline.models import CausalLM
from paceline.runner.executor import GraphStart
from paceline.runner.native.attention import call_angles, check_below
from paceline.runner.native.buffers import GroupBuffers
from paceline.runner.native.prepared_rows import PreparedRows
from paceline.runner.native.recorded_pass import RecordedPass


class Side:
    """Whoever records stages adds them and their passes."""

    def __init__(self, model: CausalLM, layers: LayerMap, pages: GroupBuffers) -> None:
        self.model, self.layers, self.pages = model, layers, pages
        self.stages: list[PreparedRows] = []
        self.passes: list[RecordedPass] = []

    @cached_property
    def _vocab_size(self) -> int:
        return self.model.embedding.tokens.weight.shape[0]

    @cached_property
    def _shifted(self) -> bool:
        return any(rows.spec.position_shift for rows in self.stages)

    @cached_property
    def _num_positions(self) -> int | None:
        """Positions with angles in a table; None if a position alone does not tell by which angles heads are turned."""
        rotaries = [rotary for rotary in self.model.rotaries if isinstance(rotary, Rotary)]
        tables = [rotary.table for rotary in rotaries if rotary.table is not None and not rotary.depends_on_length]
        return min([len(table) for table in tables], default=2**31) if len(tables) == len(rotaries) else None

    def plan(self, seats: Seats, start: GraphStart, first: Int32, past: Int32) -> None:
        """Of requests whose rows have positions [first, past).

        Raises:
            IndexError: a known token or a position that the model does not have.
        """
        if not self.passes:
            return
        self._check_tokens(seats, start, first)
        if self._shifted:
            shifts = [rows.spec.position_shift for rows in self.stages]
            first, past = np.maximum(first + np.int32(min(*shifts, 0)), 0), past + np.int32(max(*shifts, 0))
        reached = past[past > first] - 1
        for found in self.passes:
            found.check_positions(reached)
        if self._num_positions is not None:
            check_below(reached, self._num_positions, "position")
            return
        with torch.inference_mode():
            angles = call_angles(self.model, first, past, seats.longest[start.seats])
        for found in self.passes:
            found.attention.use(angles.of_rotaries)
        for rows in self.stages:
            rows.angle_base[: len(first)] = 0 if angles.base is None else angles.base

    def _check_tokens(self, seats: Seats, start: GraphStart, first: Int32) -> None:
        counts = start.context - first
        if counts.max() <= 1:
            check_below(seats.tokens[start.seats, start.context - 1], self._vocab_size, "token id")
            return
        for place in np.flatnonzero(counts > 0).tolist():
            known = seats.tokens[start.seats[place], first[place] : start.context[place]]
            check_below(known, self._vocab_size, "token id")
