"""Knows how a benchmark runs in a terminal and what is shown and written afterwards; nothing of what it measures."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from paceline.cli.bench_options import AUTO_PAGES, Measuring, OutputOptions
from paceline.cli.engine_options import EngineChoice
from paceline.cli.terminal import FAINT, console
from paceline.core.errors import ConfigError

if TYPE_CHECKING:
    from paceline.benchmark.cost import Price
    from paceline.benchmark.probes import Probes
    from paceline.benchmark.schedule import TrialPlan
    from paceline.benchmark.trial import Experiment
    from paceline.engine.llm import LLM

RAW_DIRECTORY = Path("paceline-bench")
SHOWN: Mapping[str, tuple[str, str]] = {
    "inter_token_latency_ms": ("inter-token latency, ms", ".3f"),
    "inter_token_latency_mad_ms": ("  median deviation, ms", ".3f"),
    "inter_token_latency_p99_ms": ("  99th percentile, ms", ".2f"),
    "step_latency_p99_ms": ("step latency, 99th percentile, ms", ".2f"),
    "step_latency_max_ms": ("  worst gap of any stream, ms", ".2f"),
    "time_to_first_token_ms": ("time to first token, ms", ".2f"),
    "tokens_per_second": ("tokens/s, all requests", ".1f"),
    "tokens_per_step": ("tokens per request and step", ".2f"),
    "acceptance": ("draft tokens accepted", ".1%"),
    "bandwidth": ("of probed memory bandwidth, decoding", ".1%"),
    "compute": ("of probed compute rate, decoding", ".1%"),
    "overhead": ("of decoding steps outside models and sampling", ".1%"),
    "peak_memory_mib": ("peak memory, MiB", ".0f"),
    "dollars_per_million_tokens": ("dollars per million tokens", ".3f"),
}
"""Column of the report -> how it is called, and its form."""


def note(text: str) -> None:
    """Progress, beside the results."""
    console(sys.stderr).out(text, style=FAINT)


def plan_of(measuring: Measuring) -> TrialPlan:
    from paceline.benchmark.schedule import TrialPlan

    return TrialPlan(
        num_pairs=measuring.pairs,
        pairs_per_block=measuring.pairs_per_block,
        num_warmup=measuring.warmup,
        seed=measuring.seed,
        max_drift=measuring.max_drift,
    )


def set_threads(count: int | None) -> None:
    """Before anything computes, so that model and probes use as many."""
    from paceline.engine.threads import choose_threads

    if count is not None and count < 1:
        raise ConfigError(f"--threads must be at least 1, got {count}")
    if count is not None:
        choose_threads(count)


def engine_parameters(engine: EngineChoice) -> dict[str, Any]:
    """What the raw file says of the engine, and compares when a run goes on."""
    return {"model": engine.model, "speculative": engine.speculative, "engine_options": dict(engine.options)}


def probes_of(llm: LLM, pages: str = AUTO_PAGES) -> Probes:
    """Probes that read and multiply as the model does: pages like its weights', products of their kind."""
    from paceline.benchmark.probes import MachineProbes
    from paceline.benchmark.weights import main_kind, main_pages

    model = llm.engine.runner.model
    pages = main_pages(model) if pages == AUTO_PAGES else pages
    return MachineProbes(llm.engine.runner.device, main_kind(model), pages=pages)


def check_output(output: OutputOptions) -> None:
    """Refuses before the long work what could not be written or drawn after it."""
    from paceline.benchmark.cost import find_price, load_prices

    find_price(load_prices(output.prices), name=output.hardware, hardware={"cpu": "", "gpus": []})
    for path in (output.json, output.csv):
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"there is no directory {path.parent}\nMake it, or write elsewhere.")
    if output.plots is not None and find_spec("matplotlib") is None:
        raise ConfigError("plots need matplotlib\nInstall it: pip install 'paceline[bench]'")


def run_and_show(
    kind: str,
    points: Iterable[Experiment],
    plan: TrialPlan,
    parameters: Mapping[str, Any],
    output: OutputOptions,
    *,
    probes: Probes,
    notes: Sequence[str] = (),
) -> None:
    """Measures, keeps every trial, and shows and writes what was found; ``notes`` are shown and kept with it."""
    from paceline.benchmark.environment import environment
    from paceline.benchmark.measure import measure
    from paceline.benchmark.raw import RawFile

    path = output.raw or RAW_DIRECTORY / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    header = {
        "kind": kind,
        "parameters": parameters,
        "plan": asdict(plan),
        "environment": environment(),
        "command": sys.argv,
        "notes": list(notes),
    }
    try:
        record = measure(points, plan, probes=probes, raw=RawFile(path, header), note=note)
    except KeyboardInterrupt:
        note(f"interrupted; the same command with --raw {path} goes on from here")
        raise
    _deliver(record, path, output)


def _deliver(record: Mapping[str, Any], raw: Path, output: OutputOptions) -> None:
    from paceline.benchmark.report import report, rows, write_csv

    found = report(record, price_of(output, record["environment"]["hardware"]))
    found["raw"] = str(raw)
    table = rows(found)
    if output.json is not None:
        output.json.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if output.csv is not None:
        write_csv(output.csv, table)
    if output.plots is not None:
        from paceline.benchmark.plots import draw

        for path in draw(record, found, output.plots, raw_name=raw.name):
            note(f"drawn: {path}")
    _print(found, table)


def price_of(output: OutputOptions, hardware: Mapping[str, Any]) -> Price | None:
    from paceline.benchmark.cost import find_price, load_prices

    return find_price(load_prices(output.prices), name=output.hardware, hardware=hardware)


def _print(found: Mapping[str, Any], table: Sequence[Mapping[str, Any]]) -> None:
    from paceline.benchmark.environment import describe

    out = console()
    for name, point in found["points"].items():
        out.out(name, style="bold")
        out.print(_grid([row for row in table if row["point"] == name]))
        out.out(f"times better than with {point['sides']['control']['label']}, by {point['metric']}:")
        out.out(f"  {_interval(point['ratio'])}: {point['ratio']['verdict']}")
        for category, ratio in point["categories"].items():
            out.out(f"  {category}: {_interval(ratio)}")
        for turn, ratio in point["turns"].items():
            out.out(f"  first token of {turn}: {_interval(ratio)}")
        for warning in point["warnings"]:
            out.out(f"warning: {warning}", style="yellow")
        out.out("")
    for text in found["notes"]:
        out.out(f"note: {text}", style="yellow")
    out.out(describe(found["environment"]), style=FAINT)
    if found["price"] is not None:
        out.out("price: {dollars_per_hour} $/h, {what} ({as_of}, {source})".format(**found["price"]), style=FAINT)
    out.out(f"every trial: {found['raw']}", style=FAINT)


def _grid(sides: Sequence[Mapping[str, Any]]) -> Table:
    """A point's figures, a column per side."""
    grid = Table("", *(row["side"] for row in sides), box=None, pad_edge=False, header_style=FAINT)
    for column in grid.columns[1:]:
        column.justify = "right"
    for name, (title, form) in SHOWN.items():
        if any(row[name] is not None for row in sides):
            grid.add_row(title, *("-" if row[name] is None else format(row[name], form) for row in sides))
    return grid


def _interval(ratio: Mapping[str, Any]) -> str:
    sure = f"{ratio['confidence']:.0%} interval" if ratio["enough"] else "all there are"
    return f"{ratio['median']:.3f} [{ratio['low']:.3f} to {ratio['high']:.3f}, {sure}, {ratio['num_pairs']} pairs]"
