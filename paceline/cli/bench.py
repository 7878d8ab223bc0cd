"""``paceline bench``: speed, cost and accuracy of a configuration, beside the same one without a technique."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.cli.bench_accuracy import accuracy
from paceline.cli.bench_options import Asking, Measuring, OutputOptions, asked, numbers, takes
from paceline.cli.bench_output import check_output, engine_parameters, plan_of, probes_of, run_and_show, set_threads
from paceline.cli.bench_peers import peers
from paceline.cli.bench_serve import serve
from paceline.cli.engine_options import EngineChoice
from paceline.cli.settings import HELP as SETTINGS_HELP
from paceline.cli.settings import takes_settings

if TYPE_CHECKING:
    from paceline.benchmark.controls import Control
    from paceline.benchmark.in_process import Engines
    from paceline.benchmark.shapes import Asked
    from paceline.benchmark.trial import Experiment

Sweep = Annotated[
    str | None,
    typer.Option(help="One option at several values, such as num_speculative_tokens=0,2,4, each beside the control."),
]
app = typer.Typer(name="bench", help="Measures speed, cost and accuracy.", no_args_is_help=True)


@takes(measuring=Measuring, asking=Asking, output=OutputOptions)
def latency(
    *,
    engine: EngineChoice,
    measuring: Measuring,
    asking: Asking,
    output: OutputOptions,
    batch_sizes: Annotated[str, typer.Option(help="Requests at the same time, such as 1,8.")] = "1",
    sweep: Sweep = None,
) -> None:
    """Milliseconds per token at exact batch sizes and lengths."""
    sizes = numbers(batch_sizes, "--batch-sizes")
    what = asked(asking, sizes=sizes, seed=measuring.seed)
    _in_process("latency", engine, measuring, output, metric="inter_token_latency", what=what, sweep=sweep)


@takes(measuring=Measuring, asking=Asking, output=OutputOptions)
def throughput(
    *,
    engine: EngineChoice,
    measuring: Measuring,
    asking: Asking,
    output: OutputOptions,
    num_prompts: Annotated[str, typer.Option(help="Requests handed over at once, such as 64,256.")] = "64",
    sweep: Sweep = None,
) -> None:
    """Tokens per second over many requests handed over at once, which the engine batches."""
    what = asked(asking, sizes=numbers(num_prompts, "--num-prompts"), seed=measuring.seed)
    _in_process("throughput", engine, measuring, output, metric="tokens_per_second", what=what, sweep=sweep)


def _in_process(
    kind: str,
    engine: EngineChoice,
    measuring: Measuring,
    output: OutputOptions,
    *,
    metric: str,
    what: Asked,
    sweep: str | None,
) -> None:
    from paceline.benchmark.controls import controls

    plan, control = plan_of(measuring), controls[measuring.control]
    variants = [(engine, {})] if sweep is None else _variants(engine, sweep)
    check_output(output)
    set_threads(measuring.threads)
    engines = [_engines(choice) for choice, _ in variants]
    every = [
        _experiments(own, control, what, at_once=kind == "latency", metric=metric, option=option)
        for own, (_, option) in zip(engines, variants, strict=True)
    ]
    parameters = engine_parameters(engine) | {"control": measuring.control, "asked": what.parameters(), "sweep": sweep}
    # Of the first engine, which is not kept for longer than its own points take.
    probes = probes_of(engines[0].get({}), measuring.probe_pages)
    run_and_show(kind, chain.from_iterable(every), plan, parameters, output, probes=probes)


def _variants(engine: EngineChoice, sweep: str) -> list[tuple[EngineChoice, dict[str, Any]]]:
    from paceline.cli.bench_sweep import swept

    return [(one.choice, {one.option: one.value}) for one in swept(engine, sweep)]


def _engines(choice: EngineChoice) -> Engines:
    from paceline.benchmark.in_process import Engines

    return Engines(lambda options: replace(choice, options={**choice.options, **options}).load())


def _experiments(
    engines: Engines, control: Control, what: Asked, *, at_once: bool, metric: str, option: Mapping[str, Any]
) -> Iterator[Experiment]:
    """Every shape, on one engine; nothing is loaded before the first is asked for, or kept after the last."""
    from paceline.benchmark.in_process import experiment
    from paceline.benchmark.shapes import ModelLimits, shapes

    for shape in shapes(ModelLimits.of(engines.get({}), at_once=at_once), what):
        one = experiment(engines, control, shape, metric=metric, seed=what.seed)
        if option:
            label = ", ".join(f"{name}={value}" for name, value in option.items())
            one = replace(one, name=f"{label}, {one.name}", parameters={**one.parameters, "option": dict(option)})
        yield one
    engines.clear()


for command in (latency, throughput, serve, accuracy, peers):
    app.command(epilog=SETTINGS_HELP)(takes_settings(command))
