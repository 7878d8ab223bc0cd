"""Turns groups and their progress into what users and streams receive."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.core.outputs import CompletionDelta, CompletionOutput, RequestOutput, StreamUpdate
from paceline.core.request import Group, Request
from paceline.engine.stats import metrics_of
from paceline.sampling import Selector
from paceline.text import Detokenizer


def _text(request: Request) -> str:
    return request.detokenizer.text if isinstance(request.detokenizer, Detokenizer) else ""


def _stop_reason(request: Request) -> int | str | None:
    if request.stop_reason is None and isinstance(request.detokenizer, Detokenizer):
        return request.detokenizer.stop_string
    return request.stop_reason


def completion_of(request: Request, index: int) -> CompletionOutput:
    """One finished member as the answer number ``index``."""
    wants = request.params.logprobs is not None
    return CompletionOutput(
        index=index,
        text=_text(request),
        token_ids=request.output_token_ids,
        logprobs=request.logprobs if wants else None,
        cumulative_logprob=request.cumulative_logprob if wants or request.params.best_of is not None else None,
        finish_reason=str(request.finish_reason) if request.finish_reason else None,
        stop_reason=_stop_reason(request),
        token_drafted=request.token_drafted,
        num_slides=request.num_slides,
        num_dropped_tokens=request.num_dropped,
        error=request.error,
    )


def output_of(group: Group, selector: Selector) -> RequestOutput:
    """A finished call; of ``best_of`` members the selector keeps the best ``n``."""
    return RequestOutput(
        request_id=group.id,
        prompt=group.prompt,
        prompt_token_ids=group.prompt_token_ids,
        outputs=[completion_of(request, index) for index, request in enumerate(selector.finish(group))],
        metrics=metrics_of(group),
        finished=group.finished,
        prompt_logprobs=group.prompt_logprobs,
        num_truncated_tokens=group.num_truncated_tokens,
        embedding=group.pooled.embedding if group.pooled is not None else None,
    )


def delta_of(request: Request, num_new: int) -> CompletionDelta:
    """What the last ``num_new`` tokens add to a stream."""
    finished = request.finished
    text = request.detokenizer.take_delta(finished=finished) if isinstance(request.detokenizer, Detokenizer) else ""
    first = len(request.output_token_ids) - num_new
    return CompletionDelta(
        index=request.sample_index,
        text=text,
        token_ids=request.output_token_ids[first:],
        logprobs=request.logprobs[first:] if request.params.logprobs is not None else None,
        token_drafted=request.token_drafted[first:],
        finish_reason=str(request.finish_reason) if finished else None,
        stop_reason=_stop_reason(request) if finished else None,
        error=request.error,
        token_times=[at - request.group.arrival for at in request.token_times[first:]],
    )


def update_of(group: Group, members: Sequence[tuple[Request, int]], selector: Selector) -> StreamUpdate:
    """What a step (or an abort) did for a call: its members that went on, each with its number of new tokens."""
    num_tokens = sum(len(request.output_token_ids) for request in group.members)
    is_first = num_tokens == sum(num_new for _, num_new in members)
    of_prompt = group.prompt_logprobs
    return StreamUpdate(
        group.id,
        [delta_of(request, num_new) for request, num_new in members],
        metrics_of(group) if group.finished else None,
        prompt_logprobs=of_prompt if is_first and of_prompt is not None and None not in of_prompt[1:] else None,
        embedding=group.pooled.embedding if group.pooled is not None else None,
        selected=[request.sample_index for request in selector.finish(group)] if group.finished else None,
    )
