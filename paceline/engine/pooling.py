"""Turns a prompt's hidden states into one embedding, chunk by chunk; knows nothing of models and of text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from paceline.core.batch import Batch, Output
from paceline.core.registry import Registry
from paceline.core.request import FinishReason, Pooled, Request
from paceline.core.step import StepPlan

Pooling = Callable[[int], int]
"""(number of prompt tokens) -> the first token whose hidden state counts, all after it counting too."""

poolings: Registry[Pooling] = Registry("pooling")


@poolings.add("mean")
def mean(_num_tokens: int) -> int:
    """All tokens. Sum and mean differ in length only, and embeddings have length 1."""
    return 0


@poolings.add("last")
def last(num_tokens: int) -> int:
    """The last token, which has seen all others."""
    return num_tokens - 1


def pool_hidden(plan: StepPlan, batch: Batch, output: Output) -> list[Request]:
    """Adds the step's hidden states to the embeddings that lack them, and ends those that are complete."""
    if output.pooled is None:
        return []
    hidden, owners = output.pooled, batch.row_request[batch.pooled_rows]
    done = []
    for number in np.unique(owners).tolist():
        request = plan.requests[number]
        pooled, rows = request.group.pooled, np.flatnonzero(owners == number)
        assert pooled is not None
        added = hidden[int(rows[0]) : int(rows[-1]) + 1].double().sum(0).cpu().numpy()
        total = added if pooled.total is None else pooled.total + added
        # A new one, since an interrupt may come between any two statements.
        pooled = Pooled(pooled.next_row + len(rows), total)
        if pooled.next_row == len(request.prompt_token_ids):
            _finish(request, pooled)
            done.append(request)
        else:
            request.group.pooled = pooled
    return done


def _finish(request: Request, pooled: Pooled) -> None:
    assert pooled.total is not None
    length = float(np.linalg.norm(pooled.total))
    if not np.isfinite(length):
        request.finish_reason, request.error = FinishReason.ERROR, "the model returned NaN"
        return
    pooled.embedding = (pooled.total / (length or 1.0)).tolist()
    request.group.pooled = pooled
    request.finish_reason = FinishReason.STOP
