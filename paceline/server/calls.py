"""Knows a checked request and what comes of it: answers, embeddings, figures; nothing of HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from paceline.core.call import CallOptions
from paceline.core.outputs import CompletionDelta, RequestMetrics, StreamUpdate, TokenLogprobs
from paceline.core.params import SamplingParams
from paceline.server.admission import Visit
from paceline.server.schemas import EngineRequest

Body = TypeVar("Body", bound=EngineRequest)
_MEANS = (
    "time_to_first_token",
    "time_per_output_token",
    "queue_time",
    "prefill_time",
    "decode_time",
    "e2e_time",
    "estimated_speedup",
)
_COUNTS = (
    "num_drafted",
    "num_accepted",
    "num_preemptions",
    "num_cached_tokens",
    "num_truncated_tokens",
    "num_slides",
    "num_dropped_tokens",
    "num_decode_steps",
)


@dataclass(frozen=True, slots=True)
class Call(Generic[Body]):
    """A checked request, ready for the engine, which gets one call per prompt."""

    id: str
    body: Body
    prompts: list[list[int]]
    params: SamplingParams
    options: CallOptions
    visit: Visit
    extras: bool = True
    """Whether the answer has its ``paceline`` objects."""

    @property
    def num_prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))


@dataclass(slots=True)
class Answer:
    """One whole answer."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    drafted: list[bool] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def add(self, delta: CompletionDelta) -> None:
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.drafted += delta.token_drafted
        self.logprobs += delta.logprobs or []
        self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason


@dataclass(slots=True)
class Outcome:
    """What the engine made of one prompt."""

    sampled: list[Answer]
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    embedding: list[float] | None = None
    _selected: list[int] | None = None

    @classmethod
    def of(cls, params: SamplingParams) -> Outcome:
        return cls([Answer() for _ in range(params.num_samples)])

    def add(self, update: StreamUpdate) -> None:
        for delta in update.deltas:
            self.sampled[delta.index].add(delta)
        self.metrics = update.metrics or self.metrics
        self.prompt_logprobs = update.prompt_logprobs or self.prompt_logprobs
        self.embedding = update.embedding or self.embedding
        self._selected = update.selected or self._selected

    @property
    def answers(self) -> list[Answer]:
        """Those to hand back: of ``best_of`` the ``n`` that the engine selected."""
        return self.sampled if self._selected is None else [self.sampled[index] for index in self._selected]

    @property
    def num_output_tokens(self) -> int:
        return sum(len(answer.token_ids) for answer in self.sampled)


def join_metrics(outcomes: list[Outcome]) -> RequestMetrics:
    """Over all prompts: counts added up, times and speed-ups averaged."""
    if len(outcomes) == 1:
        return outcomes[0].metrics
    joined = RequestMetrics()
    for name in _COUNTS:
        setattr(joined, name, sum(getattr(outcome.metrics, name) for outcome in outcomes))
    for name in _MEANS:
        known = [value for outcome in outcomes if (value := getattr(outcome.metrics, name)) is not None]
        setattr(joined, name, sum(known) / len(known) if known else None)
    if joined.num_decode_steps:
        joined.mean_acceptance_length = sum(o.num_output_tokens for o in outcomes) / joined.num_decode_steps
    return joined
