"""What a finished (or streaming) call hands back to its user."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position, of the unprocessed distribution (natural logarithm)."""

    token_id: int
    logprob: float
    rank: int
    """1 = the most likely token."""
    top: tuple[tuple[int, float], ...] = ()
    """(token id, logprob), most likely first."""


@dataclass(slots=True)
class CompletionOutput:
    """One answer."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    cumulative_logprob: float | None = None
    finish_reason: str | None = None
    """"stop", "length", "abort" or "error"; None while it runs."""
    stop_reason: int | str | None = None
    """The stop token or stop string that ended it, if one of the request's own did."""
    token_drafted: list[bool] = field(default_factory=list)
    """Per token: was it an accepted draft token?"""
    num_slides: int = 0
    """How often the full context dropped its older half while this answer was made."""
    num_dropped_tokens: int = 0
    """Oldest tokens, of prompt and answer, that the model no longer saw at the end."""
    error: str | None = None


@dataclass(slots=True)
class RequestMetrics:
    """How the call went; times in seconds."""

    num_drafted: int = 0
    num_accepted: int = 0
    mean_acceptance_length: float = 1.0
    """Output tokens per decoding step, the step's own token included: 1.0 without speculation."""
    time_to_first_token: float | None = None
    time_per_output_token: float | None = None
    """Mean over the tokens after the first."""
    num_preemptions: int = 0
    num_cached_tokens: int = 0
    """Prompt tokens that a prefix cache saved."""
    num_truncated_tokens: int = 0
    """Oldest prompt tokens that were cut off: context_overflow="truncate"."""
    num_slides: int = 0
    """How often a full context dropped its older half, summed over the answers: context_overflow="slide"."""
    num_dropped_tokens: int = 0
    """Tokens that left the model's sight that way, summed over the answers."""
    num_decode_steps: int = 0
    """Steps that gave an answer tokens, summed over the answers."""
    queue_time: float | None = None
    """From arrival to the first seat."""
    prefill_time: float | None = None
    """From the first seat to the first token."""
    decode_time: float | None = None
    """From the first token to the last."""
    e2e_time: float | None = None
    """From arrival to the last token."""
    estimated_speedup: float | None = None
    """Against plain decoding steps that the engine has timed; None where it has not timed enough of them."""

    @property
    def inference_time(self) -> float | None:
        """From the first seat to the last token."""
        return None if self.e2e_time is None or self.queue_time is None else self.e2e_time - self.queue_time


@dataclass(slots=True)
class RequestOutput:
    """Everything about one call: the prompt and its answers."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    """Those that were used: without what context_overflow="truncate" cut off."""
    outputs: list[CompletionOutput]
    metrics: RequestMetrics
    finished: bool = True
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_truncated_tokens: int = 0
    """Oldest prompt tokens that were cut off."""
    embedding: list[float] | None = None
    """Of a call with pooling: the prompt's vector, of Euclidean length 1; None where it failed."""


@dataclass(frozen=True, slots=True)
class CompletionDelta:
    """What one step added to one answer of a streaming call."""

    index: int
    text: str
    """May be empty: text is held back while a stop string or a UTF-8 character is incomplete."""
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    token_drafted: list[bool] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str | None = None
    token_times: list[float] = field(default_factory=list)
    """Per token: seconds from the call's arrival to its acceptance; tokens of one step share theirs."""


@dataclass(frozen=True, slots=True)
class StreamUpdate:
    """One event of a streaming call; ``metrics`` is set on the last one only."""

    request_id: str
    deltas: list[CompletionDelta]
    metrics: RequestMetrics | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    """On the first update with tokens, if they were asked for; the first token has none."""
    embedding: list[float] | None = None
    """On the last update of a call with pooling, unless it failed."""
    selected: list[int] | None = None
    """On the last update: the indexes of the answers to hand back, in order; ``best_of`` samples more than those."""

    @property
    def finished(self) -> bool:
        return self.metrics is not None
