"""``paceline chat``: a conversation in the terminal, streamed."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from paceline.cli.engine_options import EngineChoice
from paceline.cli.surroundings import as_typed
from paceline.cli.terminal import FAINT, console, print_error, print_spans
from paceline.cli.token_spans import TokenSpans
from paceline.core.errors import InvalidRequestError

if TYPE_CHECKING:
    from paceline.core.outputs import RequestMetrics
    from paceline.core.params import SamplingParams
    from paceline.engine.worker import EngineWorker

Message = dict[str, str]


def chat(
    *,
    engine: EngineChoice,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens of this total probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answers.")] = None,
) -> None:
    """Talks with a model; accepted draft tokens are coloured. /new begins again, /exit ends."""
    from paceline.core.params import SamplingParams
    from paceline.engine.worker import EngineWorker

    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    worker = EngineWorker(engine.load())
    try:
        if worker.tokenizer is None:
            raise InvalidRequestError("the model has no tokenizer, so it cannot chat\nGive a model that has one.")
        _converse(worker, params, [{"role": "system", "content": as_typed(system)}] if system else [])
    finally:
        worker.close()


def _converse(worker: EngineWorker, params: SamplingParams, opening: list[Message]) -> None:
    out, interactive = console(), sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")  # gives input() its history and editing
        out.out(f"{worker.model_name}, context {worker.max_model_len} tokens. /new, /exit", style=FAINT)
    messages = list(opening)
    for number in itertools.count():
        line = _read_line(interactive=interactive)
        if line is None or line.strip() == "/exit":
            return
        if line.strip() == "/new":
            messages = list(opening)
            continue
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line})
        try:
            answer = asyncio.run(_answer(worker, messages, params, f"chat-{number}", out, verbose=interactive))
            messages.append({"role": "assistant", "content": answer})
        except InvalidRequestError as error:
            if not interactive:
                raise
            print_error(error)
            out.out("/new begins a new conversation.", style=FAINT)
            messages.pop()
        except KeyboardInterrupt:
            out.out("")
            messages.pop()


def _read_line(*, interactive: bool) -> str | None:
    """The user's next line; None at the end, or when interrupted while waiting for it."""
    try:
        return input("> " if interactive else "")
    except EOFError:
        return None
    except KeyboardInterrupt:
        return None


async def _answer(
    worker: EngineWorker, messages: list[Message], params: SamplingParams, name: str, out: Console, *, verbose: bool
) -> str:
    from paceline.text import token_text

    assert worker.tokenizer is not None
    spans = TokenSpans()
    text, num_tokens, metrics = "", 0, None
    async for update in worker.generate(worker.tokenizer.encode_chat(messages), params, request_id=name):
        for delta in update.deltas:
            if delta.error:
                raise InvalidRequestError(delta.error)
            tokens = [token_text(worker.tokenizer, token) for token in delta.token_ids]
            print_spans(out, spans.split(delta.text, tokens, delta.token_drafted))
            text += delta.text
            num_tokens += len(delta.token_ids)
        metrics = update.metrics
    out.out("")
    if verbose and metrics is not None:
        out.out(_figures(num_tokens, metrics), style=FAINT, highlight=False)
    return text


def _figures(num_tokens: int, metrics: RequestMetrics) -> str:
    parts = [f"{num_tokens} tokens"]
    if metrics.time_per_output_token:
        parts.append(f"{1 / metrics.time_per_output_token:.0f} tokens/s")
    if metrics.num_drafted:
        parts.append(f"{metrics.num_accepted} of {metrics.num_drafted} draft tokens accepted")
    return ", ".join(parts)
