"""Knows the figures that are read when they are asked for, the engine's own and the processes', for Prometheus."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from paceline.core.errors import EngineDeadError
from paceline.server.engine_client import EngineClient

PREFIX = "paceline:"
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


class EngineFigures(Collector):
    """Reads the engine's own counters when asked; a dead engine has none."""

    def __init__(self, engine: EngineClient, model_name: str) -> None:
        self._engine, self._model = engine, [model_name]

    def describe(self) -> list[Metric]:
        """Registering asks for names; without this it would ask the engine."""
        return []

    def collect(self) -> Iterator[Metric]:
        yield from ProcessCollector(registry=None).collect()
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
        yield self._eager_steps(stats["eager_steps"])
        yield self._step_tokens(**stats["step_tokens"])
        yield self._cache_config(stats["cache_config"])
        yield from _process(stats["pid"])

    def _family(self, kind: Any, name: str, about: str, value: float) -> Metric:
        family: Metric = kind(f"{PREFIX}{name}", about, labels=["model_name"])
        family.add_metric(self._model, value)  # type: ignore[attr-defined]
        return family

    def _eager_steps(self, by_reason: dict[str, int]) -> Metric:
        name, about = f"{PREFIX}eager_steps", "Steps computed pass by pass, by why they were not one call."
        family = CounterMetricFamily(name, about, labels=["model_name", "reason"])
        for reason, count in by_reason.items():
            family.add_metric([*self._model, reason], count)
        return family

    def _by_position(self, accepted: list[int]) -> Metric:
        name = f"{PREFIX}spec_decode_num_accepted_tokens_per_pos"
        family = CounterMetricFamily(
            name, "Drafted tokens that stood, by depth in the draft.", labels=["model_name", "position"]
        )
        for position, count in enumerate(accepted):
            family.add_metric([*self._model, str(position)], count)
        return family

    def _step_tokens(self, up_to: list[int], counts: list[int], total: int) -> Metric:
        name, about = (
            f"{PREFIX}iteration_tokens_total",
            "Tokens of a step: prompt tokens computed and tokens generated.",
        )
        family = HistogramMetricFamily(name, about, labels=["model_name"])
        edges = [*(str(float(edge)) for edge in up_to), "+Inf"]
        family.add_metric(self._model, list(zip(edges, accumulate(counts), strict=True)), total)
        return family

    def _cache_config(self, config: dict[str, Any]) -> Metric:
        family = GaugeMetricFamily(
            f"{PREFIX}cache_config_info", "The K/V cache; the value is 1.", labels=["model_name", *config]
        )
        family.add_metric([*self._model, *map(str, config.values())], 1)
        return family


def _process(pid: int) -> Iterator[Metric]:
    """Processor time, memory and files of the engine's process, if it has one of its own."""
    if pid != os.getpid():
        yield from ProcessCollector(f"{PREFIX}engine", pid=lambda: pid, registry=None).collect()
