"""Knows what raw files of this comparison say: speeds, paired ratios, shares of the bandwidth; measures nothing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paceline.benchmark.statistics import PairedRatio, Spread, expand, paired_ratio
from scripts.measure_peers.checkpoints import SHAPES
from scripts.measure_peers.parts import DECODE
from scripts.measure_peers.sides import BYTES

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One part, as far as it was measured."""

    title: str
    point: Record
    seed: int = 0
    speeds: dict[str, Spread] = field(default_factory=dict)
    """Of everybody who has any, fastest first."""

    @classmethod
    def of(cls, title: str, point: Record, seed: int = 0) -> Column:
        metric = point["parameters"]["metric"]
        values = {
            name: [block["sides"][name][metric] for block in point["blocks"] if name in block["sides"]]
            for name in point.get("about", {})
        }
        found = {name: expand(numbers) for name, numbers in values.items() if numbers}
        ranked = sorted(found.items(), key=lambda item: -item[1].median)
        return cls(title, point, seed, dict(ranked))

    def about(self, name: str) -> Record:
        found: Record = self.point["about"][name]
        return found

    def names(self, *, ours: bool, kinds: Sequence[str] = ()) -> list[str]:
        """Those who do not speculate, fastest first."""
        every = [(name, self.about(name)) for name in self.speeds]
        return [
            name
            for name, about in every
            if about["ours"] == ours and not about["speculates"] and (not kinds or about["kind"] in kinds)
        ]

    def ratio(self, mine: str, other: str) -> PairedRatio:
        """How many times as fast, round by round; rounds that lack either do not count."""
        metric = self.point["parameters"]["metric"]
        both = [block["sides"] for block in self.point["blocks"] if mine in block["sides"] and other in block["sides"]]
        mines, others = ([sides[name][metric] for sides in both] for name in (mine, other))
        return paired_ratio(mines, others, lower_is_better=False, seed=self.seed)

    def of_bandwidth(self, name: str) -> Spread | None:
        """Share of the probed bandwidth that reading the weights once a step takes; None where nothing is decoded."""
        parameters, kind = self.point["parameters"], self.about(name)["kind"]
        if parameters["metric"] != DECODE or self.about(name)["speculates"]:
            return None
        step_bytes = SHAPES[parameters["shape"]].num_read * BYTES[kind]
        rows = len(parameters["prompt_lengths"])
        shares = [
            block["sides"][name][DECODE] / rows * step_bytes / bandwidth(block, kind)
            for block in self.point["blocks"]
            if name in block["sides"]
        ]
        return expand(shares)


def bandwidth(block: Record, kind: str) -> float:
    """Bytes a second: the median of the probes around a round."""
    return float(statistics.median(reading[kind]["bytes_per_second"] for reading in block["probes"]))


def columns(records: Sequence[Record]) -> list[Column]:
    """Every part of every file that has a round."""
    return [
        Column.of(title, point, record["parameters"]["seed"])
        for record in records
        for title, point in record["points"].items()
        if point["blocks"]
    ]


def shown_spread(found: Spread) -> str:
    """Median and range, with digits that fit the size."""
    form = ",.0f" if found.median >= 100 else ".1f"
    return f"{found.median:{form}} ({found.low:{form}}-{found.high:{form}})"


def shown_ratio(found: PairedRatio) -> str:
    return f"{found.median:.2f} [{found.low:.2f}, {found.high:.2f}]"


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def speed_table(column: Column) -> str:
    """Everybody's speed, share of the bandwidth, and how far the answers are ours."""
    body = []
    for name, found in column.speeds.items():
        about, share = column.about(name), column.of_bandwidth(name)
        body.append(
            [
                name,
                about["kind"],
                shown_spread(found),
                "" if share is None else f"{share.median:.0%}",
                _percent(about["same_choices"]),
                _percent(about["agreement"]),
            ]
        )
    head = ["", "weights", "tokens/s", "of probed bandwidth", "same choices", "same to the first difference"]
    return markdown(head, body)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def ratio_table(column: Column) -> str:
    """Ours over everybody else, paired by round."""
    mine = [name for name in column.speeds if column.about(name)["ours"]]
    others = [name for name in column.speeds if not column.about(name)["ours"]]
    body = [[name, *(shown_ratio(column.ratio(one, name)) for one in mine)] for name in others]
    return markdown(["over", *mine], body)


def probe_line(column: Column) -> str:
    """What memory gave meanwhile."""
    blocks = column.point["blocks"]
    found = {kind: expand([bandwidth(block, kind) / 1e9 for block in blocks]) for kind in blocks[0]["probes"][0]}
    each = (f"{kind} {one.median:.0f} ({one.low:.0f}-{one.high:.0f})" for kind, one in found.items())
    return f"Probed bandwidth, GB/s, by the bytes of the weights: {', '.join(each)}. {len(blocks)} rounds."
