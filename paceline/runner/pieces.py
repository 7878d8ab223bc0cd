"""Forwards a stage's rows in several passes where they are too many for one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from paceline.core.seats import Seats
from paceline.core.step import DraftTrees
from paceline.runner.executor import Pass
from paceline.runner.rows import RowState, place
from paceline.runner.stages import StageRows, pass_of, select_drafts, select_state


@dataclass(frozen=True, slots=True)
class PassOptions:
    """What ``GraphBuilder.forward`` is told of a pass."""

    taps: tuple[int, ...]
    inputs: torch.Tensor | None
    layers: int | None


def forward_in_pieces(
    rows: StageRows, state: RowState, drafts: DraftTrees, asked: PassOptions, *, seats: Seats, max_rows: int
) -> Pass:
    """Passes of up to ``max_rows`` known tokens of one request each; its nodes go with the last of them.

    ``rows`` are of a stage with a model, and some; ``state`` and ``drafts`` of the stage's requests.
    """
    assert rows.rows is not None
    assert rows.runner is not None
    found, row = [], 0
    for number in range(len(rows.numbers)):
        one, own = select_state(state, np.array([number])), select_drafts(drafts, np.array([number]))
        for part in _parts(one, max_rows) if rows.spec.known and not rows.spec.last else [one]:
            batch = place(rows.spec, part, own, seats, rows.runner.groups).batch
            count = len(batch.token_ids)
            beside = None if asked.inputs is None else asked.inputs[row : row + count]
            row += count
            # The next pass takes the memory of this one.
            found.append(pass_of(rows.runner.forward(batch, asked.taps, beside, asked.layers), torch.clone))
    parts = zip(*((part.logits, part.hidden, part.features) for part in found), strict=True)
    return Pass(*(torch.cat(some) for some in parts))


def _parts(one: RowState, max_rows: int) -> Iterator[RowState]:
    """A request that comes to know its tokens little by little."""
    first, end = int(one.start[0]), int(one.context[0])
    for start in range(first, max(end, first + 1), max_rows):
        until = min(start + max_rows, end)
        yield replace(
            one,
            start=np.array([start], dtype=np.int32),
            context=np.array([until], dtype=np.int32),
            sampled=one.sampled & (until == end),
            limit=one.limit if until == end else np.zeros_like(one.limit),
        )
