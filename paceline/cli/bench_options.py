"""Knows the options that the benchmarks share, as one value each; nothing of what they measure."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from paceline.core.errors import ConfigError

if TYPE_CHECKING:
    from paceline.benchmark.shapes import Asked

RANDOM_INPUT = "128"
AUTO_PAGES = "auto"
MEASURING, ASKING, OUTPUT = "Measuring", "What is asked", "Output"


def _option(help_text: str, panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, **more)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring:
    """How trials are run and what they are compared with."""

    control: Annotated[
        str, _option("What is taken away: speculation, prefix-cache, batching or same (nothing).", MEASURING)
    ] = "speculation"
    pairs: Annotated[int, _option("Trials of either side.", MEASURING)] = 10
    pairs_per_block: Annotated[int, _option("Pairs between two probes of the machine.", MEASURING)] = 2
    warmup: Annotated[int, _option("Trials of either side that do not count.", MEASURING)] = 1
    max_drift: Annotated[float, _option("Warn where the probes drift by more than this share.", MEASURING)] = 0.1
    seed: Annotated[int, _option("Of prompts, sampling, order and intervals.", MEASURING)] = 0
    probe_pages: Annotated[
        str, _option("Memory that the bandwidth probe reads: default, huge, small or auto (as the weights).", MEASURING)
    ] = AUTO_PAGES
    threads: Annotated[int | None, _option("Threads that compute; by default torch's choice.", MEASURING)] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What every trial asks."""

    input_lens: Annotated[
        str | None, _option("Exact prompt lengths in tokens, such as 128,512; 128 for random prompts.", ASKING)
    ] = None
    output_lens: Annotated[str, _option("Exact answer lengths in tokens; the model's own end is ignored.", ASKING)] = (
        "128"
    )
    prompts: Annotated[
        Path | None, _option("JSON lines of prompts: Spec-Bench, HumanEval, GSM8K or {'prompt': ...}.", ASKING)
    ] = None
    prompt_format: Annotated[str | None, _option("spec-bench, humaneval, gsm8k or plain; else found out.", ASKING)] = (
        None
    )
    prefix_len: Annotated[int, _option("Tokens that all random prompts begin with.", ASKING)] = 0
    turns: Annotated[int, _option("Turns of each dialogue of random prompts.", ASKING)] = 1
    temperature: Annotated[float, _option("0 is greedy.", ASKING)] = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """Where results go, besides the table."""

    raw: Annotated[
        Path | None,
        _option("Where every trial is kept; an unfinished run of the same options goes on from it.", OUTPUT),
    ] = None
    json: Annotated[Path | None, _option("Write the figures as JSON.", OUTPUT, metavar="FILE")] = None
    csv: Annotated[Path | None, _option("Write the table as CSV.", OUTPUT, metavar="FILE")] = None
    plots: Annotated[Path | None, _option("Draw plots (extra: bench).", OUTPUT, metavar="DIR")] = None
    prices: Annotated[Path | None, _option("TOML of prices, beside the bundled ones.", OUTPUT, metavar="FILE")] = None
    hardware: Annotated[str | None, _option("Whose price counts; by default this GPU's, if listed.", OUTPUT)] = None


def takes(**values: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: each named parameter of a command is a dataclass, whose fields become the command's options."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters.values()
        parameters = [item for item in own if item.name not in values]
        for kind in values.values():
            parameters += _parameters(kind)

        @functools.wraps(command)
        def wrapper(**given: Any) -> None:
            built = {
                name: kind(**{item.name: given.pop(item.name) for item in fields(kind)})
                for name, kind in values.items()
            }
            command(**given, **built)

        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return wrapper

    return decorate


def _parameters(kind: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=hints[item.name])
        for item in fields(kind)
    ]


def numbers(text: str, option: str) -> list[int]:
    """ "1,8,64" as integers.

    Raises:
        ConfigError: naming the option.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise ConfigError(f"{option} must be whole numbers of at least 1, got {text!r}\nFor example {option} 1,8.")
    return found


def asked(asking: Asking, *, sizes: list[int], seed: int) -> Asked:
    """What every trial asks, from the options.

    Raises:
        ConfigError: options that contradict each other, or a file of prompts that cannot be read.
    """
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
