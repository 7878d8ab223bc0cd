"""Knows how results and errors look in a terminal: colours where they are wanted, one JSON object where asked for."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import IO, Annotated, Any

import typer
from rich.console import Console

from paceline.core.settings import WORDS

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DRAFTED = "green"
FAINT = "dim"
QUIET_VARIABLE = "PACELINE_QUIET"
# A model's text may spell terminal commands; only newline and tab pass.
_HARMLESS = {code: "\ufffd" for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}


def console(file: IO[str] | None = None) -> Console:
    """Colours on a terminal only, and none with NO_COLOR."""
    return Console(file=file or sys.stdout, highlight=False, markup=False, emoji=False)


def be_quiet() -> None:
    """From now on nothing but results and errors is printed, by processes that this one starts neither."""
    os.environ[QUIET_VARIABLE] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


def is_quiet() -> bool:
    return WORDS.get(os.environ.get(QUIET_VARIABLE, "").lower(), False)


def note(text: str) -> None:
    """Something by the way, on standard error."""
    if not is_quiet():
        console(sys.stderr).out(text, style=FAINT)


def print_spans(out: Console, spans: Iterable[tuple[str, bool]]) -> None:
    """Prints a model's text as it is; what came from accepted draft tokens is coloured."""
    for text, drafted in spans:
        out.out(text.translate(_HARMLESS), style=DRAFTED if drafted else None, highlight=False, end="")
    out.file.flush()


def print_json(value: Mapping[str, Any]) -> None:
    letters = str(getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
    sys.stdout.write(json.dumps(value, ensure_ascii=not letters) + "\n")
    sys.stdout.flush()


def print_error(error: object) -> None:
    """The cause on the first line, in red, the fix on the second."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    err = console(sys.stderr)
    err.out(f"error: {lines[0]}", style="red", highlight=False)
    for line in lines[1:]:
        err.out(line, style="red", highlight=False)


def size_text(num_bytes: float) -> str:
    """Bytes as people read them, in powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"
