"""Knows how a record of a run is drawn; each plot says on what it was measured, how often, and where trials are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from paceline.benchmark.environment import describe
from paceline.benchmark.report import SIDES, trials

Record = Mapping[str, Any]
Draw = Callable[[Axes, Record, Record], bool]
"""(axes, record, report) -> whether there was anything to draw"""
COLOURS = {"subject": "tab:green", "control": "tab:gray"}
MS, MIB = 1e3, 2**-20

plots: dict[str, tuple[str, Draw]] = {}
"""File name -> title and how it is drawn; a further plot is one more entry."""


def plot(name: str, title: str) -> Callable[[Draw], Draw]:
    def register(draw_it: Draw) -> Draw:
        plots[name] = (title, draw_it)
        return draw_it

    return register


def draw(record: Record, report: Record, directory: Path, *, raw_name: str) -> list[Path]:
    """Draws every plot that the record has figures for; returns the files."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, (title, draw_it) in plots.items():
        figure = Figure(figsize=(8, 5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        if draw_it(axes, record, report):
            axes.set_title(title)
            figure.supxlabel(caption(record, raw_name), fontsize=7, color="0.35")
            drawn.append(directory / f"{record['kind']}-{name}.png")
            figure.savefig(drawn[-1], dpi=130, metadata={"Description": caption(record, raw_name)})
    return drawn


def caption(record: Record, raw_name: str) -> str:
    plan = record["plan"]
    sample = f"seed {plan['seed']}, n = {plan['num_pairs']} pairs a point"
    return f"{describe(record['environment'])}\n{sample}; trials: {raw_name}"


def _measured(record: Record) -> Iterator[tuple[str, Record]]:
    return ((name, point) for name, point in record["points"].items() if "summary" in point)


def _distribution(axes: Axes, record: Record, values: Callable[[Record], list[float]], label: str) -> bool:
    """One cumulative curve per point and side."""
    found = False
    for number, (name, point) in enumerate(_measured(record)):
        for side in SIDES:
            milliseconds = sorted(
                value * MS for trial in trials(point, side) for answer in _answers(trial) for value in values(answer)
            )
            if milliseconds:
                found = True
                shares = [(place + 1) / len(milliseconds) for place in range(len(milliseconds))]
                style = ("-", "--", ":", "-.")[number % 4]
                axes.step(
                    milliseconds,
                    shares,
                    where="post",
                    color=COLOURS[side],
                    linestyle=style,
                    label=f"{name}: {point['sides'][side]}",
                )
    if found:
        axes.set(xlabel=f"{label}, ms", ylabel="share of values at most this")
        axes.legend(fontsize=7)
    return found


def _answers(trial: Record) -> list[Record]:
    answers: list[Record] = trial["detail"].get("answers", [])
    return answers


def _latencies(answer: Record) -> list[float]:
    return [(time - before) / count for (before, _), (time, count) in pairwise(answer["steps"]) for _ in range(count)]


@plot("inter-token-latency", "Inter-token latency (a step's wait shared among its tokens)")
def _inter_token(axes: Axes, record: Record, _report: Record) -> bool:
    return _distribution(axes, record, _latencies, "inter-token latency")


@plot("time-to-first-token", "Time to first token")
def _first_token(axes: Axes, record: Record, _report: Record) -> bool:
    return _distribution(axes, record, lambda answer: [step[0] for step in answer["steps"][:1]], "first token")


@plot("speedup", "How many times better than the control (bars: 95% interval of the paired ratio)")
def _speedup(axes: Axes, _record: Record, report: Record) -> bool:
    ratios = {name: point["ratio"] for name, point in report["points"].items()}
    middle = [one["median"] for one in ratios.values()]
    ends = [
        [one["median"] - one["low"] for one in ratios.values()],
        [one["high"] - one["median"] for one in ratios.values()],
    ]
    axes.errorbar(range(len(ratios)), middle, yerr=ends, fmt="o", capsize=4, color=COLOURS["subject"])
    axes.axhline(1.0, color="0.5", linewidth=0.8)
    axes.set_xticks(range(len(ratios)), list(ratios), rotation=20, ha="right", fontsize=7)
    axes.set_ylabel("ratio")
    return bool(ratios)


@plot("option", "Over the values of an option (bars: median deviation)")
def _option(axes: Axes, _record: Record, report: Record) -> bool:
    found = [point for point in report["points"].values() if "option" in point["parameters"]]
    values = [str(next(iter(point["parameters"]["option"].values()))) for point in found]
    for side in SIDES if found else ():
        figures = [point["sides"][side]["figures"][point["metric"]] for point in found]
        scale = 1.0 if found[0]["metric"] == "tokens_per_second" else MS
        axes.errorbar(
            values,
            [one["median"] * scale for one in figures],
            yerr=[one["mad"] * scale for one in figures],
            fmt="o",
            capsize=4,
            color=COLOURS[side],
            label=found[0]["sides"][side]["label"],
        )
    if found:
        metric = found[0]["metric"]
        axes.set(xlabel=next(iter(found[0]["parameters"]["option"])), ylabel=metric + ("" if scale == 1.0 else ", ms"))
        axes.legend(fontsize=7)
    return bool(found)


@plot("acceptance-by-position", "Drafts whose token at this position was accepted")
def _positions(axes: Axes, _record: Record, report: Record) -> bool:
    found = False
    for name, point in report["points"].items():
        accepted = point["sides"]["subject"]["acceptance"]
        if accepted:
            found = True
            places = range(1, len(accepted["rate_by_position"]) + 1)
            axes.plot(places, accepted["rate_by_position"], marker="o", label=name)
    axes.set(xlabel="position in the draft", ylabel="share of drafts", ylim=(0, 1))
    if found:
        axes.legend(fontsize=7)
    return found


@plot("tokens-per-step", "Tokens that a step gave a request")
def _yields(axes: Axes, _record: Record, report: Record) -> bool:
    found = [(n, p["sides"]["subject"]["acceptance"]) for n, p in report["points"].items()]
    found = [(name, accepted) for name, accepted in found if accepted]
    for number, (name, accepted) in enumerate(found):
        histogram = accepted["tokens_per_step"]
        places = [int(size) + (number - len(found) / 2) * 0.8 / len(found) for size in histogram]
        shares = [count / sum(histogram.values()) for count in histogram.values()]
        axes.bar(places, shares, width=0.8 / len(found), label=name)
    axes.set(xlabel="tokens", ylabel="share of steps")
    if found:
        axes.legend(fontsize=7)
    return bool(found)


@plot("pareto", "Throughput against latency")
def _pareto(axes: Axes, _record: Record, report: Record) -> bool:
    found = False
    for side in SIDES:
        figures = [point["sides"][side]["figures"] for point in report["points"].values()]
        both = [one for one in figures if {"inter_token_latency", "tokens_per_second"} <= set(one)]
        if both:
            found = True
            axes.plot(
                [one["inter_token_latency"]["median"] * MS for one in both],
                [one["tokens_per_second"]["median"] for one in both],
                marker="o",
                color=COLOURS[side],
                label=next(iter(report["points"].values()))["sides"][side]["label"],
            )
    axes.set(xlabel="inter-token latency, ms", ylabel="tokens per second, all requests")
    if found:
        axes.legend(fontsize=7)
    return found


def _stacked(axes: Axes, bars: Mapping[str, Mapping[str, float]], label: str) -> bool:
    parts = dict.fromkeys(part for bar in bars.values() for part in bar)
    bottoms = [0.0] * len(bars)
    for part in parts:
        heights = [bar.get(part, 0.0) for bar in bars.values()]
        axes.bar(range(len(bars)), heights, bottom=bottoms, label=part)
        bottoms = [low + height for low, height in zip(bottoms, heights, strict=True)]
    axes.set_xticks(range(len(bars)), list(bars), rotation=20, ha="right", fontsize=6)
    axes.set_ylabel(label)
    if parts:
        axes.legend(fontsize=7)
    return bool(parts)


def _per_side(report: Record, field: str) -> Sequence[tuple[str, Any]]:
    return [
        (f"{name}\n{point['sides'][side]['label']}", point["sides"][side][field])
        for name, point in report["points"].items()
        for side in SIDES
        if point["sides"][side][field]
    ]


@plot("step-time", "A decoding step: models and sampling, and the rest")
def _step_time(axes: Axes, _record: Record, report: Record) -> bool:
    found = [(name, share) for name, share in _per_side(report, "overhead") if "decode" in share]
    bars = {name: {"models and sampling": 1 - one["decode"], "the rest": one["decode"]} for name, one in found}
    return _stacked(axes, bars, "share of the step")


@plot("memory", "Memory by part")
def _memory(axes: Axes, _record: Record, report: Record) -> bool:
    found = _per_side(report, "memory_bytes")
    bars = {name: {k: v * MIB for k, v in one.items() if v and k != "peak_memory"} for name, one in found}
    return _stacked(axes, bars, "MiB")
