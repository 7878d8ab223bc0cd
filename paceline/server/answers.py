"""Knows the parts that answers share: usage, figures, log-probabilities in the chat form, drafted tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from paceline.core.outputs import CompletionDelta, RequestMetrics, TokenLogprobs
from paceline.server.schemas.generation import StreamOptions
from paceline.text import Tokenizer, token_bytes, token_text

# JSON has no infinities; this is OpenAI's value for "very unlikely".
_LOWEST_LOGPROB = -9999.0


_COMPLETION_DETAILS = {
    "reasoning_tokens": 0,
    "audio_tokens": 0,
    "accepted_prediction_tokens": 0,
    "rejected_prediction_tokens": 0,
}
"""As OpenAI has them: answers have text alone, and predictions that a caller sends are something else than drafts."""


@dataclass(slots=True)
class TokenUsage:
    """Tokens of one call so far."""

    prompt: int
    completion: int = 0
    cached: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": dict(_COMPLETION_DETAILS),
        }


class UsageInStream:
    """What the chunks of a stream say of the usage, as its ``stream_options`` want it."""

    def __init__(self, usage: TokenUsage, options: StreamOptions | None) -> None:
        self.usage = usage
        self.at_end = bool(options and options.include_usage)
        """A last chunk, without choices, has the usage of the whole call."""
        self._always = bool(options and options.continuous_usage_stats)

    def now(self) -> dict[str, Any]:
        """Fields of the next chunk."""
        if self._always:
            return {"usage": self.usage.as_dict()}
        return {"usage": None} if self.at_end else {}


def metrics_dict(metrics: RequestMetrics) -> dict[str, Any]:
    """The ``paceline`` object of a whole answer; times in seconds, null where there were too few tokens."""
    return {
        "drafted_tokens": metrics.num_drafted,
        "accepted_tokens": metrics.num_accepted,
        "mean_acceptance_length": metrics.mean_acceptance_length,
        "queue_time": metrics.queue_time,
        "prefill_time": metrics.prefill_time,
        "decode_time": metrics.decode_time,
        "time_to_first_token": metrics.time_to_first_token,
        "time_per_output_token": metrics.time_per_output_token,
        "num_preemptions": metrics.num_preemptions,
        "num_truncated_tokens": metrics.num_truncated_tokens,
        "num_slides": metrics.num_slides,
        "num_dropped_tokens": metrics.num_dropped_tokens,
        "estimated_speedup": metrics.estimated_speedup,
    }


def token_dict(tokenizer: Tokenizer | None, token_ids: Sequence[int], drafted: Sequence[bool]) -> dict[str, Any]:
    """The ``paceline`` object of a chunk: each token's text and id, and whether it was an accepted draft token.

    The chunk's text may lag behind: text is held back while a character or a stop string is incomplete.
    """
    tokens = [] if tokenizer is None else [token_text(tokenizer, token) for token in token_ids]
    return {"tokens": tokens, "token_ids": list(token_ids), "drafted": list(drafted)}


def chunk_extra(tokenizer: Tokenizer | None, delta: CompletionDelta, metrics: RequestMetrics | None) -> dict[str, Any]:
    """What a chunk has beside OpenAI's fields; ``metrics`` come with a prompt's last chunk."""
    tokens = token_dict(tokenizer, delta.token_ids, delta.token_drafted)
    return {"paceline": tokens if metrics is None else tokens | metrics_dict(metrics)}


def json_logprob(logprob: float) -> float:
    # In this order the lowest is what NaN becomes too: a row whose best logit is infinite tells of no token.
    return max(_LOWEST_LOGPROB, logprob)


def logprobs_dict(tokenizer: Tokenizer, logprobs: Iterable[TokenLogprobs]) -> dict[str, Any]:
    """OpenAI's chat form."""
    content = [
        _token(tokenizer, item.token_id, item.logprob)
        | {"top_logprobs": [_token(tokenizer, token, logprob) for token, logprob in item.top]}
        for item in logprobs
    ]
    return {"content": content, "refusal": None}


def _token(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    return {
        "token": token_text(tokenizer, token),
        "logprob": json_logprob(logprob),
        "bytes": list(token_bytes(tokenizer, token)),
    }
