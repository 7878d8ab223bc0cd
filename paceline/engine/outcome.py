"""What a step finds out before anything changes: forward, verify, log-probabilities. It can be repeated at will."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from paceline.core.batch import Batch, Drafts, Output, SampleRows, Verdict, Works
from paceline.core.outputs import TokenLogprobs
from paceline.core.request import Request
from paceline.core.seats import Seats
from paceline.engine.logprobs import prompt_logprobs, token_logprobs
from paceline.runner import ModelRunner, assemble, assemble_chain_end, sample_rows
from paceline.sampling import Pipeline, Selector
from paceline.speculation import Verifier


@dataclass(frozen=True, slots=True)
class Outcome:
    """A computed step that is not yet committed."""

    works: Works
    drafts: Drafts
    batch: Batch
    output: Output
    verdict: Verdict
    logprobs: Mapping[int, list[TokenLogprobs]]
    """By number of request: one entry per token of the verdict, for requests that need them."""
    prompt_logprobs: list[tuple[Request, int, TokenLogprobs]]


class Computation:
    """Computes steps. Of all that lasts it writes only cells of the pool behind what is cached."""

    def __init__(
        self, *, seats: Seats, runner: ModelRunner, pipeline: Pipeline, verifier: Verifier, selector: Selector
    ) -> None:
        self.seats, self.runner, self.pipeline = seats, runner, pipeline
        self.verifier, self.selector = verifier, selector

    def run(self, works: Works, drafts: Drafts) -> Outcome:
        """Raises whatever a part raises; nothing has changed then."""
        batch = assemble(works, drafts, self.seats, self.runner.groups)
        output = self.runner.forward(batch)
        rows = sample_rows(works, drafts, self.seats, batch.sample_start)
        verdict = self.verifier.verify(output.logits, rows, drafts, batch.sample_start, self.pipeline)
        verdict = self.selector.select(works, verdict)
        return Outcome(
            works,
            drafts,
            batch,
            output,
            verdict,
            token_logprobs(self.pipeline, works, output, verdict),
            prompt_logprobs(self.pipeline, works, batch, output),
        )

    def probe(self, free_seat: int) -> None:
        """Computes a row that is nobody's, in the padding page; raises what any request would meet."""
        seats, zeros = np.array([free_seat], dtype=np.int32), np.zeros(1, dtype=np.int32)
        output = self.runner.forward(assemble_chain_end(seats, zeros, zeros, self.seats, self.runner.groups))
        nothing = np.zeros((1, 0), dtype=np.int32)
        self.pipeline.sample(output.logits, SampleRows(seats, zeros.astype(np.int64), nothing))
        for group in self.runner.groups:
            group.store.clear_pages([0])
