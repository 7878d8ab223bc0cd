"""``paceline bench``: speed, cost and accuracy of a configuration, beside the same one without a technique."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli.bench_accuracy import accuracy
from paceline.cli.bench_options import Asking, Measuring, Output, asked, numbers, takes
from paceline.cli.bench_output import check_output, engine_parameters, plan_of, probes_of, run_and_show, set_threads
from paceline.cli.bench_peers import peers
from paceline.cli.bench_serve import serve
from paceline.cli.engine_options import EngineChoice
from paceline.cli.settings import HELP as SETTINGS_HELP
from paceline.cli.settings import takes_settings

if TYPE_CHECKING:
    from paceline.benchmark.shapes import Asked

app = typer.Typer(name="bench", help="Measures speed, cost and accuracy.", no_args_is_help=True)


@takes(measuring=Measuring, asking=Asking, output=Output)
def latency(
    *,
    engine: EngineChoice,
    measuring: Measuring,
    asking: Asking,
    output: Output,
    batch_sizes: Annotated[str, typer.Option(help="Requests at the same time, such as 1,8.")] = "1",
) -> None:
    """Milliseconds per token at exact batch sizes and lengths."""
    sizes = numbers(batch_sizes, "--batch-sizes")
    what = asked(asking, sizes=sizes, seed=measuring.seed)
    _in_process("latency", engine, measuring, output, metric="inter_token_latency", what=what, at_once=True)


@takes(measuring=Measuring, asking=Asking, output=Output)
def throughput(
    *,
    engine: EngineChoice,
    measuring: Measuring,
    asking: Asking,
    output: Output,
    num_prompts: Annotated[str, typer.Option(help="Requests handed over at once, such as 64,256.")] = "64",
) -> None:
    """Tokens per second over many requests handed over at once, which the engine batches."""
    what = asked(asking, sizes=numbers(num_prompts, "--num-prompts"), seed=measuring.seed)
    _in_process("throughput", engine, measuring, output, metric="tokens_per_second", what=what, at_once=False)


def _in_process(
    kind: str, engine: EngineChoice, measuring: Measuring, output: Output, *, metric: str, what: Asked, at_once: bool
) -> None:
    from paceline.benchmark.controls import controls
    from paceline.benchmark.in_process import Engines, experiment
    from paceline.benchmark.shapes import Model, shapes

    plan, control = plan_of(measuring), controls[measuring.control]
    check_output(output)
    set_threads(measuring.threads)
    engines = Engines(lambda options: replace(engine, options={**engine.options, **options}).load())
    llm = engines.get({})
    points = [
        experiment(engines, control, shape, metric=metric, seed=measuring.seed)
        for shape in shapes(Model.of(llm, at_once=at_once), what)
    ]
    parameters = engine_parameters(engine) | {"control": measuring.control, "asked": what.parameters()}
    run_and_show(kind, points, plan, parameters, output, probes=probes_of(llm, measuring.probe_pages))


for command in (latency, throughput, serve, accuracy, peers):
    app.command(epilog=SETTINGS_HELP)(takes_settings(command))
