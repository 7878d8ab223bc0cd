"""Knows how a setting becomes a flag of a command."""

from __future__ import annotations

import inspect
from dataclasses import MISSING
from typing import Annotated, Any

import typer

from paceline.core.settings import Setting


def flag_parameter(setting: Setting, *, panel: str | None = None) -> inspect.Parameter:
    """One flag. Not given is None whatever the default, so that a flag can be told from a default."""
    kind = list[str] if setting.kind is tuple else setting.kind
    if setting.about.positional:
        argument = typer.Argument(metavar=setting.flag, help=setting.about.help, show_default=False)
        return keyword(setting.parameter, Annotated[kind | None, argument], None)
    shown = False if setting.default in (MISSING, None, ()) or setting.about.secret else str(setting.default)
    choices = list(setting.about.choices)
    given = typer.Option(
        help=setting.about.help,
        show_default=shown,
        rich_help_panel=panel,
        autocompletion=(lambda: choices) if choices else None,
    )
    return keyword(setting.parameter, Annotated[kind | None, given], None)


def keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
