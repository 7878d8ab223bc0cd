"""Knows how two sides are measured against each other; nothing of what they do."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from paceline.benchmark.probes import MachineSpeed, Probes
from paceline.benchmark.raw import RawFile
from paceline.benchmark.schedule import TrialPlan
from paceline.benchmark.statistics import MIN_PAIRS, expand, paired_ratio
from paceline.benchmark.trial import CONTROL, SUBJECT, Experiment, TrialError

Note = Callable[[str], None]


def _quiet(_text: str) -> None:
    return


def measure(
    experiments: Iterable[Experiment], plan: TrialPlan, *, probes: Probes, raw: RawFile, note: Note = _quiet
) -> dict[str, Any]:
    """Runs every experiment's trials, keeping them in ``raw`` block by block; returns the record with its figures.

    Points that ``raw`` already holds in full are not run again.

    Raises:
        TrialError: a trial failed, or lacks the figure to compare; blocks so far are kept.
    """
    for experiment in experiments:
        entry = raw.open_point(experiment.name, experiment.parameters)
        if "summary" in entry:
            note(f"{experiment.name}: already measured")
            continue
        entry["sides"] = {SUBJECT: experiment.subject.label, CONTROL: experiment.control.label}
        _run_blocks(experiment, plan, probes, raw, note)
        entry["counted"] = dict(experiment.finish()) if experiment.finish is not None else {}
        entry["summary"] = summarise(entry["blocks"], experiment, plan)
        raw.save()
    raw.data["finished"] = True
    raw.save()
    return raw.data


def _run_blocks(experiment: Experiment, plan: TrialPlan, probes: Probes, raw: RawFile, note: Note) -> None:
    blocks = raw.blocks(experiment.name)
    if len(blocks) < plan.num_blocks:
        _warm_up(experiment, plan, note)
    for number in range(len(blocks), plan.num_blocks):
        before = probes.read(experiment.work_bytes)
        pairs = []
        for pair, order in plan.pairs(number):
            note(f"{experiment.name}: pair {pair + 1} of {plan.num_pairs}")
            pairs.append({"number": pair, "order": list(order), **_run_pair(experiment, pair, order)})
        after = probes.read(experiment.work_bytes)
        blocks.append({"probes": [asdict(before), asdict(after)], "pairs": pairs})
        raw.save()


def _warm_up(experiment: Experiment, plan: TrialPlan, note: Note) -> None:
    for number in range(plan.num_warmup):
        note(f"{experiment.name}: warm-up {number + 1} of {plan.num_warmup}")
        for side in (experiment.subject, experiment.control):
            side.run(-1 - number)


def _run_pair(experiment: Experiment, pair: int, order: Sequence[str]) -> dict[str, Any]:
    sides = {SUBJECT: experiment.subject, CONTROL: experiment.control}
    found = {}
    for name in order:
        sample = sides[name].run(pair)
        value = sample.figures.get(experiment.metric)
        if value is None or not value > 0:
            raise TrialError(f"{sides[name].label} gave no {experiment.metric}\nGenerate more tokens per trial.")
        found[name] = {"figures": dict(sample.figures), "detail": dict(sample.detail)}
    return found


def summarise(blocks: Sequence[Mapping[str, Any]], experiment: Experiment, plan: TrialPlan) -> dict[str, Any]:
    """Per side the spread of every figure; the paired ratio; the probes and whether the machine was steady."""
    pairs = [pair for block in blocks for pair in block["pairs"]]
    sides = {name: _figures([pair[name]["figures"] for pair in pairs]) for name in (SUBJECT, CONTROL)}
    values = {name: [pair[name]["figures"][experiment.metric] for pair in pairs] for name in (SUBJECT, CONTROL)}
    ratio = paired_ratio(values[SUBJECT], values[CONTROL], lower_is_better=experiment.lower_is_better, seed=plan.seed)
    return {
        **sides,
        "metric": experiment.metric,
        "lower_is_better": experiment.lower_is_better,
        "ratio": asdict(ratio) | {"verdict": ratio.verdict},
        "probes": _probed(blocks),
        "warnings": _warnings(blocks, plan, num_pairs=len(pairs)),
    }


def _figures(trials: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    names = dict.fromkeys(name for figures in trials for name in figures)
    return {name: asdict(expand([one[name] for one in trials if name in one])) for name in names}


def _readings(blocks: Sequence[Mapping[str, Any]]) -> list[MachineSpeed]:
    return [MachineSpeed(**reading) for block in blocks for reading in block["probes"]]


def _probed(blocks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Medians over blocks of the median of the readings around each."""
    kinds = ("bytes_per_second", "flops_per_second")
    each = {kind: [statistics.median(one[kind] for one in block["probes"]) for block in blocks] for kind in kinds}
    return {kind: statistics.median(values) for kind, values in each.items()}


def _warnings(blocks: Sequence[Mapping[str, Any]], plan: TrialPlan, *, num_pairs: int) -> list[str]:
    found = []
    readings = _readings(blocks)
    kinds = {
        "memory bandwidth": [one.bytes_per_second for one in readings],
        "compute rate": [one.flops_per_second for one in readings],
    }
    for name, values in kinds.items():
        drift = 1 - min(values) / max(values)
        if drift > plan.max_drift:
            found.append(
                f"the machine's {name} drifted by {drift:.0%} between probes (bound {plan.max_drift:.0%}): trust only "
                "the paired ratio, or repeat on a quiet machine"
            )
    if num_pairs < MIN_PAIRS:
        found.append(f"{num_pairs} pairs are too few for an interval; run at least {MIN_PAIRS}")
    return found
