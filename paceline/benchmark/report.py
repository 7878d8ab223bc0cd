"""Knows what a record of a run says: rooflines, overhead, acceptance, cost, rows for tables; measures nothing."""

from __future__ import annotations

import csv
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paceline.benchmark.cost import Price, cost_per_million_tokens
from paceline.benchmark.roofline import roofline
from paceline.benchmark.statistics import paired_ratio
from paceline.benchmark.traffic import UNCOUNTED, kernel_traffic
from paceline.benchmark.trial import CONTROL, SUBJECT

Record = Mapping[str, Any]
SIDES = (SUBJECT, CONTROL)


def report(record: Record, price: Price | None = None) -> dict[str, Any]:
    """The record without its trials, with what follows from them; ready for JSON."""
    points = {name: _point(point, record, price) for name, point in record["points"].items() if "summary" in point}
    kept = ("format", "kind", "parameters", "plan", "environment", "command", "notes", "finished")
    return {
        **{key: record.get(key) for key in kept},
        "price": None if price is None else asdict(price),
        "points": points,
    }


def _point(point: Record, record: Record, price: Price | None) -> dict[str, Any]:
    return {
        "parameters": point["parameters"],
        "sides": {side: _side(point, side, price) for side in SIDES},
        "ratio": point["summary"]["ratio"],
        "categories": ratios_of(point, "categories", seed=record["plan"]["seed"]),
        "turns": ratios_of(point, "turns", seed=record["plan"]["seed"]),
        "metric": point["summary"]["metric"],
        "probes": point["summary"]["probes"],
        "warnings": [*point["summary"]["warnings"], *_notes(point)],
    }


def _side(point: Record, side: str, price: Price | None) -> dict[str, Any]:
    figures = point["summary"][side]
    counted = point["counted"].get(side, {})
    speed = figures.get("tokens_per_second", {}).get("median")
    return {
        "label": point["sides"][side],
        "figures": figures,
        "acceptance": pooled_acceptance(point, side),
        "memory_bytes": counted.get("memory"),
        "overhead": {
            phase: one["outside_kernels"] / one["seconds"] for phase, one in counted.get("overhead", {}).items()
        },
        "traffic": counted.get("traffic"),
        "roofline": _rooflines(point, side),
        "dollars_per_million_tokens": cost_per_million_tokens(price, speed) if price and speed else None,
    }


def trials(point: Record, side: str) -> list[Record]:
    """Every trial of one side, in the order of pairs."""
    return [pair[side] for block in point["blocks"] for pair in block["pairs"]]


def _rooflines(point: Record, side: str) -> dict[str, Any]:
    """By phase: counted work of a mean step, in the median time of a timed one, over the probes' rates."""
    counted, found = point["counted"].get(side, {}), {}
    for phase, kinds in counted.get("traffic", {}).items():
        num_bytes, num_flops = kernel_traffic(kinds)
        num_steps = counted["num_steps"][phase]
        times = [one["detail"]["phases"][phase] for one in trials(point, side)]
        seconds = statistics.median([one["seconds"] / one["num_steps"] for one in times if one["num_steps"]] or [0.0])
        if not seconds or not num_steps:
            continue
        line = roofline(
            num_bytes=num_bytes / num_steps, num_flops=num_flops / num_steps, seconds=seconds, **_rates(point)
        )
        found[phase] = asdict(line) | {
            "bound": line.bound,
            "seconds_per_step": seconds,
            "bytes_per_step": num_bytes / num_steps,
            "flops_per_step": num_flops / num_steps,
        }
    return found


def _rates(point: Record) -> dict[str, float]:
    return {name: point["summary"]["probes"][name] for name in ("bytes_per_second", "flops_per_second")}


def pooled_acceptance(point: Record, side: str) -> dict[str, Any] | None:
    """Acceptance over all trials of a side; None if nothing was drafted."""
    parts = [one["detail"]["acceptance"] for one in trials(point, side) if "acceptance" in one["detail"]]
    drafts, drafted, accepted = (sum(p[key] for p in parts) for key in ("num_drafts", "num_drafted", "num_accepted"))
    if not drafted:
        return None
    places = [sum(counts) for counts in zip(*(part["accepted_by_position"] for part in parts), strict=True)]
    histogram: Counter[str] = Counter()
    for part in parts:
        histogram.update(part["tokens_per_step"])
    return {
        "rate": accepted / drafted,
        "length": 1 + accepted / drafts,
        "rate_by_position": [count / drafts for count in places],
        "tokens_per_step": dict(sorted(histogram.items(), key=lambda item: int(item[0]))),
    }


def ratios_of(point: Record, detail: str, *, seed: int) -> dict[str, Any]:
    """The paired ratio of each of several latencies that trials have kept under ``detail``.

    Such as "categories", the inter-token latency of each category of prompts, and "turns", the time to first token of
    each turn of the dialogues. Nothing where there is a single one.
    """
    sides = {side: [one["detail"].get(detail, {}) for one in trials(point, side)] for side in SIDES}
    names = dict.fromkeys(name for one in sides[SUBJECT] for name in one)
    found = {}
    for name in names if len(names) > 1 else ():
        pairs = [
            (a[name], b[name]) for a, b in zip(sides[SUBJECT], sides[CONTROL], strict=True) if name in a and name in b
        ]
        if pairs:
            ratio = paired_ratio([a for a, _ in pairs], [b for _, b in pairs], lower_is_better=True, seed=seed)
            found[name] = asdict(ratio) | {"verdict": ratio.verdict}
    return found


NOTES = {
    "num_preemptions": "{} requests were preempted for want of K/V pages: raise num_blocks, or ask fewer at once",
    "num_failed": "{} requests failed, and count in no figure: see errors in the raw file",
}
"""Figures that should be 0, and what it means when they are not."""
NOT_COUNTED = "some native kernels are not counted: shares of bandwidth and compute are too low"


def _notes(point: Record) -> list[str]:
    every = [one["figures"] for side in SIDES for one in trials(point, side)]
    sums = {name: sum(int(figures.get(name, 0)) for figures in every) for name in NOTES}
    found = [NOTES[name].format(total) for name, total in sums.items() if total]
    return [*found, NOT_COUNTED] if _has_uncounted(point) else found


def _has_uncounted(point: Record) -> bool:
    return any(UNCOUNTED in kinds for side in point["counted"].values() for kinds in side.get("traffic", {}).values())


COLUMNS = (
    "point",
    "side",
    "n",
    "inter_token_latency_ms",
    "inter_token_latency_mad_ms",
    "inter_token_latency_p99_ms",
    "step_latency_p99_ms",
    "step_latency_max_ms",
    "time_to_first_token_ms",
    "tokens_per_second",
    "tokens_per_step",
    "acceptance",
    "acceptance_length",
    "ratio",
    "ratio_low",
    "ratio_high",
    "verdict",
    "bandwidth",
    "compute",
    "overhead",
    "peak_memory_mib",
    "dollars_per_million_tokens",
)
MS, MIB = 1e3, 2**-20


def rows(found: Record) -> list[dict[str, Any]]:
    """One row per point and side of a ``report``, with ``COLUMNS``; None where a figure does not apply."""
    return [_row(name, point, side) for name, point in found["points"].items() for side in SIDES]


def _row(name: str, point: Record, side: str) -> dict[str, Any]:
    one = point["sides"][side]
    figures, accepted = one["figures"], one["acceptance"] or {}

    def figure(key: str, scale: float = 1.0, field: str = "median") -> float | None:
        return figures[key][field] * scale if key in figures else None

    decode, peak = one["roofline"].get("decode", {}), (one["memory_bytes"] or {}).get("peak_memory")
    ratio = point["ratio"] if side == SUBJECT else {}
    values = (
        name,
        one["label"],
        figures[point["metric"]]["count"],
        figure("inter_token_latency", MS),
        figure("inter_token_latency", MS, "mad"),
        figure("inter_token_latency_p99", MS),
        figure("step_latency_p99", MS),
        figure("step_latency_max", MS, "high"),
        figure("time_to_first_token_p50", MS),
        figure("tokens_per_second"),
        figure("tokens_per_step"),
        accepted.get("rate"),
        accepted.get("length"),
        *(ratio.get(key) for key in ("median", "low", "high", "verdict")),
        *(decode.get(key) for key in ("bandwidth", "compute")),
        one["overhead"].get("decode"),
        None if peak is None else peak * MIB,
        one["dollars_per_million_tokens"],
    )
    return dict(zip(COLUMNS, values, strict=True))


def write_csv(path: Path, table: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(table)
