"""``paceline demo``: the real service, the same questions with speculation off and on, and what that changed."""

from __future__ import annotations

import io
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

import paceline
from paceline.cli.comparison import Question, ServiceComparison, ask, summary
from paceline.cli.engine_options import EngineChoice
from paceline.cli.loopback import running_service
from paceline.cli.terminal import DRAFTED, FAINT, AsJson, console, print_error, print_json, print_spans
from paceline.core.errors import ConfigError

if TYPE_CHECKING:
    import httpx

QUESTIONS = (
    Question("I would like to book a table at an Italian restaurant for two people tonight."),
    Question("I want a large iced latte with oat milk and a blueberry muffin to go please."),
    Question("I need to rent a car in Los Angeles from March 2nd at 10 am until Friday, and I'd like an SUV."),
    Question("What will the weather be like in San Francisco tomorrow?", temperature=0.7, seed=7),
)
MEASURE_SECONDS = 40.0
ROUNDS = 2
DIFFERENT = 1


def demo(
    *,
    engine: EngineChoice,
    as_json: AsJson = False,
) -> None:
    """Starts the service, asks the same questions with speculation off and on, and compares."""
    if engine.speculative is None or (engine.speculative == "auto" and engine.model is not None):
        raise ConfigError("the demo compares speculation off and on, and no drafter is named\nAdd --draft DIR.")
    out = console(io.StringIO() if as_json else sys.stdout)
    out.out("starting the service ...", style=FAINT)
    with running_service(engine.arguments()) as client:
        out.out(f"it answers at {client.base_url}; text in green was drafted and accepted\n", style=FAINT)
        comparisons = compare(client, QUESTIONS, out)
    if as_json:
        print_json(report(comparisons, engine))
    else:
        _print_table(out, comparisons)
    if not summary([one for one in comparisons if must_agree(one.question, engine)])["identical"]:
        print_error("the texts differ with speculation off and on\nThey must never: please report this output.")
        raise typer.Exit(DIFFERENT)


def must_agree(question: Question, engine: EngineChoice) -> bool:
    """Whether the verifier promises the text of plain decoding, or only, for what is sampled, its distribution."""
    from paceline.core.config import SpeculativeConfig
    from paceline.speculation import verifiers

    if question.temperature == 0 or isinstance(engine.speculative, str):
        return True
    config = SpeculativeConfig.of(engine.speculative)
    return config is None or verifiers[config.verifier].keeps_text


def compare(client: httpx.Client, questions: Sequence[Question], out: Console) -> list[ServiceComparison]:
    """Asks every question off and on, twice over, for as long as there is time; prints the first speculated answers."""
    for speculation in (False, True):
        ask(client, Question("Hello!", max_tokens=16), speculation=speculation)
    comparisons = [ServiceComparison(question) for question in questions]
    deadline = time.monotonic() + MEASURE_SECONDS
    for number in range(ROUNDS):
        for one in comparisons:
            if time.monotonic() > deadline:
                break
            if number == 0:
                out.out(f"> {one.question.text}", style="bold")
            one.plain.append(ask(client, one.question, speculation=False))
            show = None if number else lambda span: print_spans(out, [span])
            one.speculated.append(ask(client, one.question, speculation=True, show=show))
            if number == 0:
                out.out("\n")
    return [one for one in comparisons if one.plain]


def report(comparisons: Sequence[ServiceComparison], engine: EngineChoice) -> dict[str, Any]:
    """Everything the demo found, ready for JSON."""
    return {
        "paceline": paceline.__version__,
        "torch": version("torch"),
        "machine": {"platform": platform.platform(), "num_cpus": os.cpu_count()},
        "model": engine.model or "paceline-pair",
        "speculative_config": engine.speculative,
        "questions": [
            {
                "prompt": one.question.text,
                "temperature": one.question.temperature,
                "seed": one.question.seed,
                "text": one.speculated[0].text,
                "texts_off": [answer.text for answer in one.plain],
                "texts_on": [answer.text for answer in one.speculated],
                "spans": one.speculated[0].spans,
                "num_tokens": one.speculated[0].num_tokens,
                "ratios": one.ratios,
                **summary([one]),
            }
            for one in comparisons
        ],
        **summary(comparisons),
    }


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _print_table(out: Console, comparisons: Sequence[ServiceComparison]) -> None:
    table = Table("question", box=None, pad_edge=False, header_style=FAINT)
    for name in ("off", "on", "speed-up", "accepted", "tokens/step", "same text"):
        table.add_column(name, justify="right")
    rows = [(one.question.text.split(".")[0], [one]) for one in comparisons]
    for name, part in [*rows, ("all", list(comparisons))]:
        figures = summary(part)
        table.add_row(
            name if len(name) <= 26 else f"{name[:23]}...",
            _number(figures["tokens_per_second_off"], ".0f"),
            _number(figures["tokens_per_second_on"], ".0f"),
            _number(figures["speedup"], ".2f") + "x",
            f"{figures['num_accepted']}/{figures['num_drafted']}",
            _number(figures["mean_acceptance_length"], ".2f"),
            "yes" if figures["identical"] else "NO",
            style=DRAFTED if name == "all" and figures["identical"] else None,
        )
    out.print(table)
    pairs = summary(comparisons)["num_pairs"]
    out.out(f"off, on: output tokens per second; speed-up: the median of {pairs} pairs asked in turn", style=FAINT)
