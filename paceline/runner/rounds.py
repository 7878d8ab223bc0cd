"""Several rounds of drafting and verifying as one call; knows two runners' requests and pages, not what comes of it."""

from __future__ import annotations

import torch

from paceline.core.batch import Int64, SampleRows, Works
from paceline.core.seats import Seats
from paceline.runner.model_runner import ModelRunner
from paceline.runner.native.rounds import Rounds, Start, Taken
from paceline.sampling import Pipeline

LEAST_REQUESTS = 4
"""Rounds are recorded anew when there are more requests than ever before, with room for a power of two of them."""
MOST_ROWS = 256
"""Of a target's pass: a larger one gains nothing by being one of several."""


class RoundsRunner:
    """Runs rounds in which ``draft`` drafts chains for ``target``."""

    def __init__(self, draft: ModelRunner, target: ModelRunner, pipeline: Pipeline) -> None:
        self.draft, self.target, self.pipeline = draft, target, pipeline
        self._recorded: Rounds | None = None

    @torch.inference_mode()
    def run(self, works: Works, rows: SampleRows, depth: int, num_rounds: int, seats: Seats) -> Taken | None:
        """Rounds for requests that all lack their last token in the target's cache, and at most two in the drafter's.

        All slots that rows of these rounds may have must be held. None, and nothing was computed, where rounds must be
        computed one by one. Fewer rounds where all requests end before.

        Raises:
            IndexError: a token, a page or a position that there is not.
        """
        recorded, self._recorded = self._rounds(rows, depth, num_rounds), None
        if recorded is None:
            return None
        known: Int64 = works.end.astype(int)
        start = Start(
            seats=works.seats,
            context=works.end,
            first_index=rows.output_index,
            before=seats.tokens[works.seats, known - 2],
            last=seats.tokens[works.seats, known - 1],
            draft_pages=[group.page_table[works.seats] for group in self.draft.groups],
            target_pages=[group.page_table[works.seats] for group in self.target.groups],
        )
        taken = recorded.run(start, num_rounds, [request.enders for request in works.requests])
        self._recorded = recorded  # else it was cut short, and may be half planned
        return taken

    def _rounds(self, rows: SampleRows, depth: int, num_rounds: int) -> Rounds | None:
        sampling = self.pipeline.native(rows, at_once=False)
        draft, target = self.draft.executor.recordable, self.target.executor.recordable
        if sampling is None or draft is None or target is None or len(rows) * (depth + 1) > MOST_ROWS:
            return None
        if not (draft.moves_on and target.moves_on):
            return None
        had = self._recorded
        if had is None or had.call is not sampling.call or had.depth != depth or not _fits(had, len(rows), num_rounds):
            requests = max(LEAST_REQUESTS, 1 << (len(rows) - 1).bit_length(), 0 if had is None else had.requests)
            most = max(num_rounds, 0 if had is None else had.most)
            self._recorded = had = Rounds(draft, target, sampling.call, depth=depth, requests=requests, most=most)
        return had


def _fits(rounds: Rounds, requests: int, num_rounds: int) -> bool:
    return requests <= rounds.requests and num_rounds <= rounds.most
