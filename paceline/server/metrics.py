"""Knows the service's figures as Prometheus reads them; the names are vLLM's, with our prefix."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from paceline.core.errors import EngineDeadError
from paceline.core.outputs import CompletionDelta, RequestMetrics, StreamUpdate
from paceline.server.engine_client import EngineClient

PREFIX = "paceline:"
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
_TOKEN = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
_LONG = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 120.0, 480.0)
_TIMES = {
    "time_to_first_token_seconds": ("From a call's arrival to its first token.", _SHORT, "time_to_first_token"),
    "e2e_request_latency_seconds": ("From a call's arrival to its last token.", _LONG, "e2e_time"),
    "request_queue_time_seconds": ("From a call's arrival to its first step.", _SHORT, "queue_time"),
    "request_prefill_time_seconds": ("From a call's first step to its first token.", _SHORT, "prefill_time"),
    "request_decode_time_seconds": ("From a call's first token to its last.", _LONG, "decode_time"),
    "request_inference_time_seconds": ("From a call's first step to its last token.", _LONG, "inference_time"),
}
"""Histogram -> what it says, its buckets, its field of RequestMetrics."""
_GAUGES = {
    "num_requests_running": ("Requests that have a seat.", lambda s: s["num_requests_running"]),
    "num_requests_waiting": ("Requests that wait for a seat.", lambda s: s["num_requests_waiting"]),
    "kv_cache_usage_perc": ("Share of the K/V pages in use; 1 is all.", lambda s: _share(s["pages"])),
}
_COUNTERS = {
    "num_preemptions": ("Requests sent back to wait.", lambda s: s["num_preemptions"]),
    "prefix_cache_queries": ("Tokens looked up in the prefix cache.", lambda s: s["prefix_cache"]["queries"]),
    "prefix_cache_hits": ("Tokens found in the prefix cache.", lambda s: s["prefix_cache"]["hits"]),
    "spec_decode_num_drafts": ("Drafts that were verified.", lambda s: s["speculation"]["num_drafts"]),
    "spec_decode_num_draft_tokens": ("Drafted tokens.", lambda s: s["speculation"]["num_drafted"]),
    "spec_decode_num_accepted_tokens": ("Drafted tokens that stood.", lambda s: s["speculation"]["num_accepted"]),
}


def _share(pages: dict[str, int]) -> float:
    return pages["referenced"] / pages["total"] if pages["total"] else 0.0


class Metrics:
    """Counts what callers got, and asks the engine for the rest when it is read. Its registry is its own."""

    def __init__(self, engine: EngineClient, model_name: str) -> None:
        self.registry, self.model_name = CollectorRegistry(), model_name
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of finished calls.")
        self.generation_tokens = self._counter("generation_tokens", "Generated tokens.")
        self.ignored_fields = self._counter("ignored_fields", "Unknown fields of bodies that were ignored.")
        self.successes = Counter(
            f"{PREFIX}request_success",
            "Answers that ended, by what ended them.",
            labelnames=["model_name", "finished_reason"],
            registry=self.registry,
        )
        about = "Time between tokens; the tokens of one step share its time evenly."
        self.inter_token = self._histogram("inter_token_latency_seconds", about, _TOKEN)
        self.times = {field: self._histogram(name, about, buckets) for name, (about, buckets, field) in _TIMES.items()}
        self.registry.register(_EngineFigures(engine, model_name))

    def _counter(self, name: str, about: str) -> Counter:
        return Counter(f"{PREFIX}{name}", about, ["model_name"], registry=self.registry).labels(self.model_name)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        made = Histogram(f"{PREFIX}{name}", about, ["model_name"], registry=self.registry, buckets=buckets)
        return made.labels(self.model_name)

    def watch(self, num_prompt_tokens: int) -> Watch:
        """For one call of the engine."""
        return Watch(self, num_prompt_tokens)

    def text(self) -> bytes:
        """In Prometheus' text format; may wait for the engine, so it is called off the event loop."""
        return generate_latest(self.registry)


class Watch:
    """Sees one call's updates and files what they say."""

    def __init__(self, metrics: Metrics, num_prompt_tokens: int) -> None:
        self._metrics, self._num_prompt_tokens = metrics, num_prompt_tokens
        self._last: dict[int, float] = {}
        self._ended = False

    def see(self, update: StreamUpdate) -> None:
        for delta in update.deltas:
            self._metrics.generation_tokens.inc(len(delta.token_ids))
            self._gaps(delta)
            if delta.finish_reason is not None:
                self._end(delta.finish_reason)
        if update.metrics is not None:
            self._metrics.prompt_tokens.inc(self._num_prompt_tokens)
            self._times(update.metrics)

    def leave(self) -> None:
        """The caller takes no more updates."""
        if not self._ended:
            self._end("abort")

    def _end(self, reason: str) -> None:
        self._ended = True
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


class _EngineFigures(Collector):
    """Reads the engine's own counters when asked; a dead engine has none."""

    def __init__(self, engine: EngineClient, model_name: str) -> None:
        self._engine, self._model = engine, [model_name]

    def describe(self) -> list[Metric]:
        """Registering asks for names; without this it would ask the engine."""
        return []

    def collect(self) -> Iterator[Metric]:
        yield self._family(CounterMetricFamily, "engine_restarts", "Restarts of the engine.", self._engine.restarts)
        try:
            stats = self._engine.stats()
        except EngineDeadError:
            return
        for name, (about, read) in _GAUGES.items():
            yield self._family(GaugeMetricFamily, name, about, read(stats))
        for name, (about, read) in _COUNTERS.items():
            yield self._family(CounterMetricFamily, name, about, read(stats))
        yield self._by_position(stats["speculation"]["accepted_per_position"])

    def _family(self, kind: Any, name: str, about: str, value: float) -> Metric:
        family: Metric = kind(f"{PREFIX}{name}", about, labels=["model_name"])
        family.add_metric(self._model, value)  # type: ignore[attr-defined]
        return family

    def _by_position(self, accepted: list[int]) -> Metric:
        name = f"{PREFIX}spec_decode_num_accepted_tokens_per_pos"
        family = CounterMetricFamily(
            name, "Drafted tokens that stood, by depth in the draft.", labels=["model_name", "position"]
        )
        for position, count in enumerate(accepted):
            family.add_metric([*self._model, str(position)], count)
        return family
