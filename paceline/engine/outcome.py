"""What a step finds out before anything changes: forward, verify, log-probabilities. It can be repeated at will."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from paceline.core.batch import Batch, Drafts, Int64, Output, SampleRows, Verdict, Works
from paceline.core.outputs import TokenLogprobs
from paceline.core.request import Request
from paceline.core.seats import Seats
from paceline.engine.logprobs import need_logprobs, prompt_logprobs, token_logprobs
from paceline.engine.rounds import Part, first_drafts, parts_of, verdict_of
from paceline.runner import ModelRunner, assemble, assemble_chain_end, sample_rows
from paceline.sampling import Pipeline, Selector
from paceline.speculation import GuardedProposer, Verifier
from paceline.speculation.verify.base import append


@dataclass(frozen=True, slots=True)
class Outcome:
    """A computed step that is not yet committed."""

    works: Works
    drafts: Drafts
    sampled: list[int]
    """The numbers of the works that reached their last known token."""
    batch: Batch | None
    """None of several rounds, which have none in common."""
    output: Output | None
    """None where nothing was wanted but tokens."""
    verdict: Verdict
    logprobs: Mapping[int, list[TokenLogprobs]]
    """By number of request: one entry per token of the verdict, for requests that need them."""
    prompt_logprobs: list[tuple[Request, int, TokenLogprobs]]
    parts: list[list[Part]] | None = None
    """By number of request: its rounds, if there were several."""


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
        rows = sample_rows(works, drafts, self.seats, batch.sample_start)
        sampled = np.flatnonzero(batch.sample_start[1:] - batch.sample_start[:-1]).tolist()
        verdict = self._sampled(works, drafts, batch, rows)
        if verdict is not None:
            return Outcome(works, drafts, sampled, batch, None, self.selector.select(works, verdict), {}, [])
        output = self.runner.forward(batch)
        verdict = self.verifier.verify(output.logits, rows, drafts, batch.sample_start, self.pipeline)
        verdict = self.selector.select(works, verdict)
        return Outcome(
            works,
            drafts,
            sampled,
            batch,
            output,
            verdict,
            token_logprobs(self.pipeline, works, output, verdict),
            prompt_logprobs(self.pipeline, works, batch, output),
        )

    def rounds(self, works: Works, proposer: GuardedProposer) -> Outcome | None:
        """As ``run``, for works that may have several rounds, drafts included; None if that must be done one by one."""
        if need_logprobs(works) or not self.verifier.keeps_text:
            return None
        taken = proposer.rounds(works, self.runner)
        if taken is None:
            return None
        verdict, everybody = self.selector.select(works, verdict_of(taken)), list(range(len(works)))
        return Outcome(works, first_drafts(taken), everybody, None, None, verdict, {}, [], parts_of(works, taken))

    def _sampled(self, works: Works, drafts: Drafts, batch: Batch, rows: SampleRows) -> Verdict | None:
        """The verdict, where tokens are all that is wanted and passes and samplings can be one native call."""
        drafted = bool(drafts.counts.any())
        if not len(rows) or len(batch.prompt_rows) or len(batch.pooled_rows) or need_logprobs(works):
            return None
        if drafted and not self.verifier.keeps_text:
            return None
        counts = np.full(len(rows), works.ahead, dtype=np.int32)
        enders = [request.enders for request in works.requests] if works.ahead else ()
        sampled = self.runner.chain(batch, rows, counts, self.pipeline, enders)
        if sampled is None:
            return None
        if works.ahead:
            return _run_ahead(sampled)
        return self.verifier.judge(sampled[0].tolist(), drafts, batch.sample_start)

    def probe(self, free_seat: int) -> None:
        """Computes a row that is nobody's, in the padding page; raises what any request would meet."""
        seats, zeros = np.array([free_seat], dtype=np.int32), np.zeros(1, dtype=np.int32)
        output = self.runner.forward(assemble_chain_end(seats, zeros, zeros, self.seats, self.runner.groups))
        nothing = np.zeros((1, 0), dtype=np.int32)
        self.pipeline.sample(output.logits, SampleRows(seats, zeros.astype(np.int64), nothing))
        for group in self.runner.groups:
            group.store.clear_pages([0])


def _run_ahead(sampled: Int64) -> Verdict:
    """Of int64[passes, R]: what each row was given, up to what is no token; all but the last were fed, like a draft."""
    verdict, whole = Verdict([], [], []), int(sampled.min()) >= 0
    for row, tokens in enumerate(sampled.T.tolist()):
        if not whole:
            good = next((place for place, token in enumerate(tokens) if token < 0), len(tokens))
            del tokens[max(good, 1) :]
        append(verdict, tokens, list(range(len(tokens) - 1)), [row] * len(tokens))
    return verdict
