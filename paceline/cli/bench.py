"""``paceline bench``: speed, cost and accuracy of a configuration, beside the same one without a technique."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.cli.bench_accuracy import accuracy
from paceline.cli.bench_options import Asking, Measuring, Output, numbers, takes
from paceline.cli.bench_output import check_output, plan_of, run_and_show
from paceline.cli.engine_options import EngineChoice
from paceline.cli.settings import HELP as SETTINGS_HELP
from paceline.cli.settings import takes_settings
from paceline.core.errors import ConfigError

if TYPE_CHECKING:
    from paceline.benchmark.probes import Probes
    from paceline.benchmark.shapes import Asked
    from paceline.engine.llm import LLM

RANDOM_INPUT = "128"
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
    asked = _asked(asking, sizes, measuring.seed)
    _in_process("latency", engine, measuring, output, metric="inter_token_latency", asked=asked, at_once=True)


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
    asked = _asked(asking, numbers(num_prompts, "--num-prompts"), measuring.seed)
    _in_process("throughput", engine, measuring, output, metric="tokens_per_second", asked=asked, at_once=False)


def _in_process(
    kind: str, engine: EngineChoice, measuring: Measuring, output: Output, *, metric: str, asked: Asked, at_once: bool
) -> None:
    from paceline.benchmark.controls import controls
    from paceline.benchmark.in_process import Engines, experiment
    from paceline.benchmark.shapes import shapes

    plan, control = plan_of(measuring), controls[measuring.control]
    check_output(output)
    set_threads(measuring.threads)
    engines = Engines(lambda options: replace(engine, options={**engine.options, **options}).load())
    llm = engines.get({})
    points = [
        experiment(engines, control, shape, metric=metric, seed=measuring.seed)
        for shape in shapes(llm, asked, at_once=at_once)
    ]
    parameters = engine_parameters(engine) | {"control": measuring.control, "asked": asked.parameters()}
    run_and_show(kind, points, plan, parameters, output, probes=probes_of(llm))


def _asked(asking: Asking, sizes: list[int], seed: int) -> Asked:
    from paceline.benchmark.shapes import Asked
    from paceline.benchmark.workloads import read_prompts

    if asking.prompts is not None and (asking.prefix_len or asking.turns > 1):
        raise ConfigError("--prefix-len and --turns make random prompts, --prompts reads a file\nLeave one out.")
    lengths = asking.input_lens or (RANDOM_INPUT if asking.prompts is None else None)
    return Asked(
        batch_sizes=sizes,
        input_lengths=None if lengths is None else numbers(lengths, "--input-lens"),
        output_lengths=numbers(asking.output_lens, "--output-lens"),
        prompts=None if asking.prompts is None else read_prompts(asking.prompts, asking.prompt_format),
        prefix_length=asking.prefix_len,
        num_turns=asking.turns,
        temperature=asking.temperature,
        seed=seed,
    )


def set_threads(count: int | None) -> None:
    """Before anything computes, so that model and probes use as many."""
    import torch

    if count is not None and count < 1:
        raise ConfigError(f"--threads must be at least 1, got {count}")
    if count is not None:
        torch.set_num_threads(count)


def engine_parameters(engine: EngineChoice) -> dict[str, Any]:
    """What the raw file says of the engine, and compares when a run goes on."""
    return {"model": engine.model, "speculative": engine.speculative, "engine_options": dict(engine.options)}


def probes_of(llm: LLM) -> Probes:
    from paceline.benchmark.probes import MachineProbes

    model = llm.engine.runner.model
    return MachineProbes(llm.engine.runner.device, model.dtype)


for command in (latency, throughput, accuracy):
    app.command(epilog=SETTINGS_HELP)(takes_settings(command))
