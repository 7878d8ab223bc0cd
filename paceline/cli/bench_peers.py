"""``paceline bench peers``: other engines on the same weights and token ids, beside ours in the same run."""

from __future__ import annotations

import functools
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli.bench_options import Asking, Measuring, OutputOptions, asked, numbers, takes
from paceline.cli.bench_output import (
    check_output,
    engine_parameters,
    note,
    plan_of,
    probes_of,
    run_and_show,
    set_threads,
)
from paceline.cli.engine_options import EngineChoice
from paceline.core.errors import ConfigError

if TYPE_CHECKING:
    from paceline.benchmark.in_process import EngineSide
    from paceline.benchmark.peers import Missing, ReadyPeer
    from paceline.benchmark.shapes import Asked
    from paceline.benchmark.trial import Experiment
    from paceline.engine.llm import LLM

ENVIRONMENTS = Path.home() / ".cache" / "paceline" / "peers"
SPEED = "tokens_per_second"


@takes(measuring=Measuring, asking=Asking, output=OutputOptions)
def peers(
    *,
    engine: EngineChoice,
    measuring: Measuring,
    asking: Asking,
    output: OutputOptions,
    engines: Annotated[str, typer.Option(help="Which, such as transformers,transformers-assisted.")] = "transformers",
    batch_size: Annotated[int, typer.Option(help="Requests at the same time.")] = 1,
    environments: Annotated[
        Path, typer.Option(help="Where each gets a virtual environment of its own.")
    ] = ENVIRONMENTS,
    this_environment: Annotated[
        bool, typer.Option("--this-environment", help="Run them with this Python instead; install nothing.")
    ] = False,
) -> None:
    """Tokens per second beside other engines, whose greedy answers are compared with ours first."""
    from paceline.benchmark.peers import Missing
    from paceline.benchmark.peers import peers as known

    plan, names = plan_of(measuring), engines.split(",")
    for name in names:
        _ = known[name]
    what = asked(asking, sizes=numbers(str(batch_size), "--batch-size"), seed=measuring.seed)
    if len(what.output_lengths) != 1 or len(what.input_lengths or (0,)) != 1 or what.num_turns > 1:
        raise ConfigError("engines are compared at one shape\nGive one --input-lens and one --output-lens.")
    if asking.temperature:
        raise ConfigError("engines are compared by greedy answers\nLeave --temperature out.")
    check_output(output)
    set_threads(measuring.threads)
    llm = engine.load()
    with ExitStack() as stack:
        ours = _ours(llm, what, measuring)
        ready = _prepared(names, engine, llm, ours, None if this_environment else environments)
        chosen = [one for one in ready if not isinstance(one, Missing)]
        for one in chosen:
            stack.enter_context(one.process)
        notes = [f"{one.name} is missing: {one.reason}" for one in ready if isinstance(one, Missing)]
        parameters = engine_parameters(engine) | {"peers": names, "asked": what.parameters()}
        parameters |= {"best_settings": {one.name: one.best.settings for one in chosen}}
        points = [_experiment(ours, one) for one in chosen]
        run_and_show("peers", points, plan, parameters, output, probes=probes_of(llm), notes=notes)


def _ours(llm: LLM, what: Asked, measuring: Measuring) -> EngineSide:
    from paceline.benchmark.in_process import EngineSide
    from paceline.benchmark.shapes import ModelLimits, shapes

    (shape,) = shapes(ModelLimits.of(llm, at_once=True), what)
    return EngineSide(llm, shape, label="paceline", speculate=True, seed=measuring.seed)


def _prepared(
    names: list[str], engine: EngineChoice, llm: LLM, ours: EngineSide, directory: Path | None
) -> list[ReadyPeer | Missing]:
    """Every peer ready in its best settings, or why it is missing."""
    import torch

    from paceline.benchmark.accuracy import write_greedily
    from paceline.benchmark.peers import Task, environment_python, prepare
    from paceline.benchmark.peers import peers as known
    from paceline.engine.pair import EMBEDDED_TARGET
    from paceline.models import resolve_model

    prompts = [dialogue.prompt([]) for dialogue in ours.shape.dialogues(0)]
    speculative, revision = llm.engine.config.speculative, llm.engine.config.revision
    draft = None if speculative is None else speculative.model
    draft_revision = None if speculative is None else speculative.revision
    task = Task(
        model=str(EMBEDDED_TARGET if engine.model is None else resolve_model(engine.model, revision=revision)),
        draft=None if draft is None else str(resolve_model(draft, revision=draft_revision)),
        prompts=prompts,
        expected=[one.answer for one in write_greedily(llm, prompts, ours.shape.output_length)],
        threads=torch.get_num_threads(),
    )

    def python_of(name: str) -> Path:
        return Path(sys.executable) if directory is None else environment_python(directory, known[name])

    ready = []
    for name in names:
        note(f"{name}: preparing")
        ready.append(prepare(name, known[name], task, start=functools.partial(python_of, name)))
    return ready


def _experiment(ours: EngineSide, peer: ReadyPeer) -> Experiment:
    """The same prompts in every pair: those whose answers were compared."""
    from paceline.benchmark.trial import Experiment, Variant

    prompts = [dialogue.prompt([]) for dialogue in ours.shape.dialogues(0)]
    shares = {"agreement": peer.best.agreement, "same_choices": peer.best.same_choices}
    return Experiment(
        name=f"{peer.name}, {ours.shape.name}",
        parameters={**ours.shape.parameters, "versions": peer.versions, **shares},
        subject=Variant("paceline", lambda _pair: ours.trial(0)),
        control=peer.side(prompts, ours.shape.output_length),
        metric=SPEED,
        lower_is_better=False,
        work_bytes=ours.llm.stats()["memory_bytes"]["target_weights"],
    )
