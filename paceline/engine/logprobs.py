"""Fills in the log-probabilities that requests asked for, from the unprocessed logits of a step."""

from __future__ import annotations

from paceline.core.batch import Batch, Output, Verdict, Works
from paceline.core.request import Request
from paceline.sampling import Pipeline


def _wants_logprobs(request: Request) -> bool:
    return request.params.logprobs is not None or request.params.best_of is not None


def record_logprobs(pipeline: Pipeline, works: Works, output: Output, verdict: Verdict) -> None:
    """Appends one entry per accepted token to the requests that need them."""
    wanted = [number for number, request in enumerate(works.requests) if _wants_logprobs(request)]
    owners = [works.requests[number] for number in wanted for _ in verdict.tokens[number]]
    if not owners:
        return
    found = pipeline.logprobs(
        output.logits,
        [row for number in wanted for row in verdict.rows[number]],
        [token for number in wanted for token in verdict.tokens[number]],
        [request.params.logprobs or 0 for request in owners],
    )
    for request, entry in zip(owners, found, strict=True):
        request.logprobs.append(entry)
        request.cumulative_logprob += entry.logprob


def record_prompt_logprobs(pipeline: Pipeline, works: Works, batch: Batch, output: Output) -> None:
    """Files the entries of this step's prompt rows under the prompt tokens they predict."""
    if output.prompt_logits is None:
        return
    requests = [works.requests[index] for index in batch.row_request[batch.prompt_rows]]
    places = (batch.positions[batch.prompt_rows] + 1).tolist()
    found = pipeline.logprobs(
        output.prompt_logits,
        list(range(len(places))),
        [request.prompt_token_ids[place] for request, place in zip(requests, places, strict=True)],
        [request.params.prompt_logprobs or 0 for request in requests],
    )
    for request, place, entry in zip(requests, places, found, strict=True):
        assert request.group.prompt_logprobs is not None
        request.group.prompt_logprobs[place] = entry
