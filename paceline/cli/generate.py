"""``paceline generate``: completes one prompt and prints the text."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.cli.engine_options import EngineChoice
from paceline.cli.surroundings import as_typed
from paceline.cli.terminal import AsJson, console, print_json, print_spans
from paceline.cli.token_spans import TokenSpans
from paceline.core.errors import InvalidRequestError

if TYPE_CHECKING:
    from paceline.core.outputs import RequestOutput
    from paceline.engine.llm import LLM


def generate(
    *,
    engine: EngineChoice,
    prompt: Annotated[str | None, typer.Option(help="Text to go on with; - reads standard input.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to write.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens of this total probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep this many tokens; 0 keeps all.")] = 0,
    min_p: Annotated[float, typer.Option(help="Keep tokens at least this likely, relative to the likeliest.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given more than once.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Do not end where the model would.")] = False,
    as_chat: Annotated[bool, typer.Option("--chat", help="Put the prompt as a user's message.")] = False,
    as_json: AsJson = False,
) -> None:
    """Completes a prompt."""
    from paceline.core.params import SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        stop=[as_typed(text) for text in stop or ()],
        ignore_eos=ignore_eos,
    )
    text = _read(prompt)
    llm = engine.load()
    (output,) = llm.chat([{"role": "user", "content": text}], params) if as_chat else llm.generate(text, params)
    if as_json:
        print_json(_as_dict(llm, text, output))
    else:
        _print_text(llm, output)


def _read(prompt: str | None) -> str:
    if prompt is None and sys.stdin.isatty():
        raise InvalidRequestError('there is no prompt\nGive --prompt "..." or pipe it in.', param="prompt")
    return sys.stdin.read() if prompt is None or prompt == "-" else as_typed(prompt)


def _print_text(llm: LLM, output: RequestOutput) -> None:
    from paceline.text import token_text

    (answer,) = output.outputs
    if llm.tokenizer is None:
        print(answer.token_ids)
        return
    out = console()
    tokens = [token_text(llm.tokenizer, token) for token in answer.token_ids]
    print_spans(out, TokenSpans().split(answer.text, tokens, answer.token_drafted))
    out.out("")


def _as_dict(llm: LLM, prompt: str, output: RequestOutput) -> dict[str, Any]:
    (answer,) = output.outputs
    return {
        "model": llm.model_name,
        "prompt": prompt,
        "text": answer.text,
        "token_ids": answer.token_ids,
        "token_drafted": answer.token_drafted,
        "finish_reason": answer.finish_reason,
        "usage": {"prompt_tokens": len(output.prompt_token_ids), "completion_tokens": len(answer.token_ids)},
        "metrics": asdict(output.metrics),
    }
