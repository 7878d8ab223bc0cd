"""Finds the log-probabilities that requests asked for in the unprocessed logits of a step; files nothing."""

from __future__ import annotations

from collections.abc import Mapping

from paceline.core.batch import Batch, Output, Verdict
from paceline.core.outputs import TokenLogprobs
from paceline.core.request import Request
from paceline.core.step import StepPlan
from paceline.sampling import Pipeline


def token_logprobs(
    pipeline: Pipeline, plan: StepPlan, output: Output, verdict: Verdict
) -> Mapping[int, list[TokenLogprobs]]:
    """One entry per token of the verdict, by number of request, for those that need them."""
    wanted = [number for number, request in enumerate(plan.requests) if request.keeps_logprobs]
    if not wanted:
        return {}
    params = [request.group.params for request in plan.requests]
    numbers = [number for number in wanted for _ in verdict.tokens[number]]
    found = pipeline.logprobs(
        output.logits,
        [row for number in wanted for row in verdict.rows[number]],
        [token for number in wanted for token in verdict.tokens[number]],
        [params[number].logprobs or 0 for number in numbers],
    )
    entries: dict[int, list[TokenLogprobs]] = {}
    for number, entry in zip(numbers, found, strict=True):
        entries.setdefault(number, []).append(entry)
    return entries


def prompt_logprobs(
    pipeline: Pipeline, plan: StepPlan, batch: Batch, output: Output
) -> list[tuple[Request, int, TokenLogprobs]]:
    """The entries of this step's prompt rows, each with its request and the place of the token that it predicts."""
    if output.prompt_logits is None:
        return []
    requests = [plan.requests[index] for index in batch.row_request[batch.prompt_rows]]
    places = (batch.positions[batch.prompt_rows] + 1).tolist()
    found = pipeline.logprobs(
        output.prompt_logits,
        list(range(len(places))),
        [request.prompt_token_ids[place] for request, place in zip(requests, places, strict=True)],
        [request.params.prompt_logprobs or 0 for request in requests],
    )
    return list(zip(requests, places, found, strict=True))
