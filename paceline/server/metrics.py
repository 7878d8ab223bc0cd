"""Knows the service's figures as Prometheus reads them; the names are vLLM's, with our prefix."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    Metric,
    generate_latest,
)
from prometheus_client.openmetrics import exposition as openmetrics
from starlette.types import Scope

from paceline.core.outputs import CompletionDelta, RequestMetrics, StreamUpdate
from paceline.server.engine_client import EngineClient
from paceline.server.engine_figures import PREFIX, EngineFigures

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
_TOKEN = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
_LONG = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 120.0, 480.0)
_LENGTH = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_TIMES = {
    "time_to_first_token_seconds": ("From a call's arrival to its first token.", _SHORT, "time_to_first_token"),
    "e2e_request_latency_seconds": ("From a call's arrival to its last token.", _LONG, "e2e_time"),
    "request_queue_time_seconds": ("From a call's arrival to its first step.", _SHORT, "queue_time"),
    "request_prefill_time_seconds": ("From a call's first step to its first token.", _SHORT, "prefill_time"),
    "request_decode_time_seconds": ("From a call's first token to its last.", _LONG, "decode_time"),
    "request_time_per_output_token_seconds": (
        "Of a call: the mean time between its tokens.",
        _TOKEN,
        "time_per_output_token",
    ),
    "request_inference_time_seconds": ("From a call's first step to its last token.", _LONG, "inference_time"),
}
"""Histogram -> what it says, its buckets, its field of RequestMetrics."""


class _Registry(CollectorRegistry):
    """Without the times at which each counter was made, which double what there is and tell nothing."""

    def collect(self) -> Iterator[Metric]:
        for metric in super().collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class Metrics:
    """Counts what callers got, and asks the engine for the rest when it is read. Its registry is its own."""

    def __init__(self, engine: EngineClient, model_name: str) -> None:
        self.registry, self.model_name = _Registry(), model_name
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of calls that ended, aborted ones too.")
        self.generation_tokens = self._counter("generation_tokens", "Generated tokens.")
        self.ignored_fields = self._counter("ignored_fields", "Unknown fields of bodies that were ignored.")
        self.successes = self._labelled("request_success", "Answers that ended, by what ended them.", "finished_reason")
        self.http = self._labelled(
            "http_requests", "HTTP requests that were answered, by status.", "method", "handler", "status"
        )
        about = "Time between tokens; the tokens of one step share its time evenly."
        self.inter_token = self._histogram("inter_token_latency_seconds", about, _TOKEN)
        self.prompt_length = self._histogram("request_prompt_tokens", "Prompt tokens of a call.", _LENGTH)
        self.length = self._histogram("request_generation_tokens", "Generated tokens of an answer.", _LENGTH)
        self.times = {field: self._histogram(name, about, buckets) for name, (about, buckets, field) in _TIMES.items()}
        self.registry.register(EngineFigures(engine, model_name))

    def _counter(self, name: str, about: str) -> Counter:
        return self._labelled(name, about).labels(self.model_name)

    def _labelled(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}{name}", about, ["model_name", *labels], registry=self.registry)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        made = Histogram(f"{PREFIX}{name}", about, ["model_name"], registry=self.registry, buckets=buckets)
        return made.labels(self.model_name)

    def watch(self, num_prompt_tokens: int, num_answers: int) -> CallMetrics:
        """For one call of the engine."""
        return CallMetrics(self, num_prompt_tokens, num_answers)

    def answered(self, scope: Scope, status: int) -> None:
        """Counts an HTTP request; what no endpoint took has the handler "none", so that no path makes a new label."""
        method, route = scope["method"], scope.get("route")
        handler = getattr(route, "path", None) or "none"
        self.http.labels(self.model_name, method if method in _METHODS else "other", handler, str(status)).inc()

    def text(self, *, openmetrics_format: bool = False) -> tuple[bytes, str]:
        """All figures and their content type; may wait for the engine, so it is called off the event loop."""
        if openmetrics_format:
            return openmetrics.generate_latest(self.registry), openmetrics.CONTENT_TYPE_LATEST
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


def wants_openmetrics(accept: str) -> bool:
    """Whether an Accept header names OpenMetrics and does not refuse it."""
    for part in accept.lower().split(","):
        kind, *parameters = (word.strip() for word in part.split(";"))
        if kind == "application/openmetrics-text":
            return not any(word.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000") for word in parameters)
    return False


class CallMetrics:
    """Sees one call's updates and files what they say."""

    def __init__(self, metrics: Metrics, num_prompt_tokens: int, num_answers: int) -> None:
        self._metrics, self._num_prompt_tokens = metrics, num_prompt_tokens
        self._last: dict[int, float] = {}
        self._lengths = dict.fromkeys(range(num_answers), 0)
        """Tokens so far of each answer that has not ended."""
        self._over = False

    def see(self, update: StreamUpdate) -> None:
        for delta in update.deltas:
            self._metrics.generation_tokens.inc(len(delta.token_ids))
            self._gaps(delta)
            if delta.index in self._lengths:
                self._lengths[delta.index] += len(delta.token_ids)
                if delta.finish_reason is not None:
                    self._end(delta.index, delta.finish_reason)
        if update.metrics is not None:
            self._count_prompt()
            self._times(update.metrics)

    def leave(self) -> None:
        """The caller takes no more updates: what has not ended is aborted."""
        self._count_prompt()
        for index in tuple(self._lengths):
            self._end(index, "abort")

    def _count_prompt(self) -> None:
        if not self._over:
            self._over = True
            self._metrics.prompt_tokens.inc(self._num_prompt_tokens)
            self._metrics.prompt_length.observe(self._num_prompt_tokens)

    def _end(self, index: int, reason: str) -> None:
        self._metrics.length.observe(self._lengths.pop(index))
        self._metrics.successes.labels(self._metrics.model_name, reason).inc()

    def _gaps(self, delta: CompletionDelta) -> None:
        for at, tokens in groupby(delta.token_times):
            count, before = len(list(tokens)), self._last.get(delta.index)
            self._last[delta.index] = at
            if before is not None:
                for _ in range(count):
                    self._metrics.inter_token.observe((at - before) / count)

    def _times(self, metrics: RequestMetrics) -> None:
        for field, histogram in self._metrics.times.items():
            value = getattr(metrics, field)
            if value is not None:
                histogram.observe(value)
