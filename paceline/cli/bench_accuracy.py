"""``paceline bench accuracy``: what a configuration's types and caches cost in answers, beside a reference."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from paceline.cli.bench_output import note
from paceline.cli.engine_options import EngineChoice
from paceline.cli.terminal import FAINT, console
from paceline.core.errors import ConfigError

if TYPE_CHECKING:
    from paceline.benchmark.accuracy import Passages, Perplexity
    from paceline.engine.llm import LLM

EXACT = '{"dtype": "float32", "kv_cache_dtype": "auto", "cache": "paged"}'


def accuracy(
    *,
    engine: EngineChoice,
    text: Annotated[Path, typer.Option(help="Text file to predict, and to take prompts from.")],
    reference: Annotated[
        str, typer.Option(metavar="JSON", help="Engine options of the reference, which never speculates.")
    ] = EXACT,
    window: Annotated[int, typer.Option(help="Tokens predicted together.")] = 512,
    stride: Annotated[int | None, typer.Option(help="Tokens between windows; by default they do not overlap.")] = None,
    num_prompts: Annotated[int, typer.Option(help="Prompts to answer, cut from the text.")] = 16,
    prompt_len: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 64,
    output_len: Annotated[int, typer.Option(help="Tokens of each answer.")] = 64,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON.")] = None,
) -> None:
    """Perplexity of a text, and agreement of greedy answers, beside a reference configuration."""
    from paceline.benchmark.accuracy import agreement, perplexity, write_greedily
    from paceline.benchmark.environment import environment

    exact = replace(engine, speculative=None, options={**engine.options, **_options(reference)})
    note("the reference ...")
    llm = exact.load()
    passages, prompts = _cut(llm, text, window, stride or window, (num_prompts, prompt_len, output_len))
    expected, written = perplexity(llm, passages), write_greedily(llm, prompts, output_len)
    note("the configuration ...")
    llm = engine.load()
    found = _figures(perplexity(llm, passages), expected) | {"agreement": asdict(agreement(llm, written))}
    choices = {"subject": dict(engine.options), "reference": dict(exact.options)}
    if as_json is not None:
        whole = found | {"model": engine.model, "engine_options": choices, "environment": environment()}
        as_json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    _print(found)


def _options(reference: str) -> dict[str, Any]:
    try:
        values = json.loads(reference)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise ConfigError(f"--reference must be a JSON object, got {reference!r}\nFor example '{EXACT}'.")
    return values


def _cut(
    llm: LLM, text: Path, window: int, stride: int, asked: tuple[int, int, int]
) -> tuple[Passages, list[list[int]]]:
    """The windows to predict, and (number, length, answer's length) prompts, evenly over the text."""
    from paceline.benchmark.accuracy import Passages

    if llm.tokenizer is None:
        raise ConfigError("the model has no tokenizer, so it cannot read a text\nUse a model that has one.")
    try:
        tokens = llm.tokenizer.encode(text.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{text} cannot be read: {error}\nGive a text file.") from None
    count, length, output = asked
    longest = llm.max_model_len - 1
    if max(window, length + output) > longest:
        raise ConfigError(
            f"windows of {window} and prompts with answers of {length + output} tokens must fit {longest} tokens\n"
            f"Set --window to at most {longest}."
        )
    if min(count, length, output) < 1 or count * length > len(tokens):
        raise ConfigError(
            f"{count} prompts of {length} tokens cannot be cut from a text of {len(tokens)}\n"
            f"Set --num-prompts to at most {len(tokens) // max(length, 1)}, or give a longer text."
        )
    step = len(tokens) // count
    prompts = [tokens[number * step : number * step + length] for number in range(count)]
    return Passages.of(tokens, window=window, stride=stride), prompts


def _figures(subject: Perplexity, reference: Perplexity) -> dict[str, Any]:
    from paceline.benchmark.accuracy import loss_difference

    difference, error = loss_difference(subject, reference)
    return {
        "perplexity": {"subject": subject.value, "reference": reference.value, "num_tokens": len(subject.losses)},
        "nats_per_token": {"difference": difference, "standard_error": error},
    }


def _print(found: dict[str, Any]) -> None:
    out = console()
    grid = Table("", "configuration", "reference", box=None, pad_edge=False, header_style=FAINT)
    both = found["perplexity"]
    grid.add_row(f"perplexity, {both['num_tokens']} tokens", f"{both['subject']:.4f}", f"{both['reference']:.4f}")
    out.print(grid)
    loss, same = found["nats_per_token"], found["agreement"]
    out.out(f"nats per token: {loss['difference']:+.6f} (standard error {loss['standard_error']:.6f})")
    out.out(f"{same['num_answers']} greedy answers: {same['identical']:.1%} identical, ", end="")
    out.out(f"{same['same_before_difference']:.1f} tokens before the first that differs")
    out.out(f"next token given the reference's text: {same['next_token']:.2%} of {same['num_tokens']} the same")
