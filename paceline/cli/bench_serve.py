"""``paceline bench serve``: a real service process under load, beside itself without a technique."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.cli.bench_options import AUTO_PAGES, Asking, Measuring, OutputOptions, asked, numbers, takes
from paceline.cli.bench_output import check_output, engine_parameters, note, plan_of, run_and_show, set_threads
from paceline.cli.engine_options import EngineChoice
from paceline.core.errors import ConfigError

if TYPE_CHECKING:
    from paceline.benchmark.arrivals import Load
    from paceline.benchmark.client import Endpoint
    from paceline.benchmark.controls import Control
    from paceline.benchmark.shapes import ModelLimits
    from paceline.benchmark.trial import Experiment

METRICS = ("inter_token_latency", "time_to_first_token_p50", "request_latency", "tokens_per_second")


@takes(measuring=Measuring, asking=Asking, output=OutputOptions)
def serve(
    *,
    engine: EngineChoice,
    measuring: Measuring,
    asking: Asking,
    output: OutputOptions,
    num_requests: Annotated[int, typer.Option(help="Requests of every trial.")] = 32,
    concurrency: Annotated[str | None, typer.Option(help="Closed loop: requests in progress, such as 1,8.")] = None,
    rates: Annotated[str | None, typer.Option(help="Open loop: requests a second, such as 0.5,2.")] = None,
    arrivals: Annotated[str, typer.Option(help="Of an open loop: poisson or constant.")] = "poisson",
    url: Annotated[str | None, typer.Option(help="A service that runs already; PACELINE_API_KEY is its key.")] = None,
    metric: Annotated[str, typer.Option(help=f"What decides: {', '.join(METRICS)}.")] = METRICS[0],
) -> None:
    """Latency and throughput of a real service under closed-loop, constant or Poisson load."""
    from paceline.benchmark.controls import controls

    plan, control, loads = plan_of(measuring), controls[measuring.control], _loads(concurrency, rates, arrivals)
    _check(metric, control, url)
    what = asked(asking, sizes=[_at_least_one(num_requests)], seed=measuring.seed)
    check_output(output)
    set_threads(measuring.threads)
    parameters: dict[str, Any] = engine_parameters(engine) | {
        "control": measuring.control,
        "asked": what.parameters(),
        "loads": [load.name for load in loads],
        "url": url,
        "metric": metric,
    }
    with _services(engine, control, url) as (subject, other):
        from paceline.benchmark.serving import context_of, experiment
        from paceline.benchmark.shapes import shapes
        from paceline.benchmark.workloads import plain_token_ids

        model = _model(engine, context_of(subject))
        salts = plain_token_ids(model.vocab_size, model.tokenizer, model.end_token_ids)
        points: list[Experiment] = [
            experiment((subject, other), control, shape, load, metric=metric, seed=measuring.seed, salts=salts)
            for load in loads
            for shape in shapes(model, what)
        ]
        run_and_show("serve", points, plan, parameters, output, probes=_probes(measuring))


def _check(metric: str, control: Control, url: str | None) -> None:
    if metric not in METRICS:
        raise ConfigError(f"unknown metric {metric!r}\nChoose one of: {', '.join(METRICS)}.")
    if url is not None and control.options:
        raise ConfigError("a service that runs has one set of options\nAdd --control speculation or same, or no --url.")


def _at_least_one(count: int) -> int:
    if count < 1:
        raise ConfigError(f"--num-requests must be at least 1, got {count}")
    return count


def _loads(concurrency: str | None, rates: str | None, kind: str) -> list[Load]:
    from paceline.benchmark.arrivals import closed, opened

    if (concurrency is None) == (rates is None):
        raise ConfigError("a load is a closed or an open loop\nGive either --concurrency 1,8 or --rates 0.5,2.")
    if concurrency is not None:
        return [closed(count) for count in numbers(concurrency, "--concurrency")]
    try:
        return [opened(kind, float(rate)) for rate in (rates or "").split(",")]
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"--rates must be numbers, got {rates!r}\nFor example --rates 0.5,2.") from None


@contextmanager
def _services(engine: EngineChoice, control: Control, url: str | None) -> Iterator[tuple[Endpoint, Endpoint]]:
    """The configured service and its control: the same process if a call's own fields can make the difference."""
    from paceline.benchmark.client import Endpoint
    from paceline.cli.loopback import running_service

    if url is not None:
        key = os.environ.get("PACELINE_API_KEY")
        there = Endpoint(url.rstrip("/"), {"Authorization": f"Bearer {key}"} if key else {})
        yield there, there
        return
    with ExitStack() as stack:

        def start(choice: EngineChoice) -> Endpoint:
            note("starting the service ...")
            client = stack.enter_context(running_service(choice.arguments()))
            return Endpoint(str(client.base_url).rstrip("/"), {"Authorization": client.headers["Authorization"]})

        subject = start(engine)
        without = replace(engine, options={**engine.options, **control.options})
        yield subject, (start(without) if control.options else subject)


def _model(engine: EngineChoice, context: int) -> ModelLimits:
    """What the prompts must respect, read without the weights."""
    from paceline.benchmark.shapes import ModelLimits
    from paceline.engine.pair import EMBEDDED_TARGET
    from paceline.models import resolve_model
    from paceline.models.config import Fields, read_json
    from paceline.text import Tokenizer

    revision = engine.options.get("revision")
    directory = EMBEDDED_TARGET if engine.model is None else resolve_model(engine.model, revision=revision)
    path = directory / "config.json"
    fields = Fields(path, read_json(path))
    tokenizer = Tokenizer.try_load(directory)
    ends = frozenset(fields.token_ids("eos_token_id")) | (tokenizer.end_token_ids if tokenizer else frozenset())
    return ModelLimits(tokenizer, fields.integer("vocab_size"), ends, context)


def _probes(measuring: Measuring) -> Any:
    """Of this process, while the service is idle: on a CPU the machine is the same."""
    import torch

    from paceline.benchmark.probes import MachineProbes

    pages = "default" if measuring.probe_pages == AUTO_PAGES else measuring.probe_pages
    return MachineProbes(torch.device("cpu"), "fp32", pages=pages)
