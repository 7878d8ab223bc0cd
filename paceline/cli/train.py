"""``paceline train``: the recipes, their options derived from the dataclasses that describe them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any

import typer

from paceline.cli.flags import flag_parameter, keyword
from paceline.core.settings import settings_of
from paceline.training.head_options import DFlashOptions, Eagle3Options, MedusaOptions, MtpOptions
from paceline.training.options import DraftOptions, EvaluateOptions, TargetOptions
from paceline.training.settings import resolve

app = typer.Typer(name="train", help="Trains a target, distils a draft or a drafting head from one, or measures them.")

ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="TOML", help="File with the names of these flags as keys; flags win.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Report as JSON, an object per line.")]


def _run_target(options: TargetOptions, progress: Any) -> None:
    from paceline.training.target import train_target

    train_target(options, progress)


def _run_draft(options: DraftOptions, progress: Any) -> None:
    from paceline.training.draft import train_draft

    train_draft(options, progress)


def _run_eagle3(options: Eagle3Options, progress: Any) -> None:
    from paceline.training.eagle3 import train_eagle3

    train_eagle3(options, progress)


def _run_medusa(options: MedusaOptions, progress: Any) -> None:
    from paceline.training.medusa import train_medusa

    train_medusa(options, progress)


def _run_mtp(options: MtpOptions, progress: Any) -> None:
    from paceline.training.mtp import train_mtp

    train_mtp(options, progress)


def _run_dflash(options: DFlashOptions, progress: Any) -> None:
    from paceline.training.block import train_dflash

    train_dflash(options, progress)


def _run_evaluation(options: EvaluateOptions, progress: Any) -> None:
    from paceline.training.evaluate import evaluate

    evaluate(options, progress)


def _add(name: str, kind: Any, recipe: Callable[[Any, Any], None]) -> None:
    def command(config: Path | None, as_json: bool, **flags: Any) -> None:
        from paceline.training.progress import choose_progress

        given = {flag: value for flag, value in flags.items() if value not in (None, [])}
        options, progress = resolve(kind, given, config), choose_progress(as_json=as_json)
        with progress.running():
            recipe(options, progress)

    settings = settings_of(kind).values()
    own = [
        keyword("config", ConfigFile, None),
        keyword("as_json", AsJson, False),
    ]
    required = [flag_parameter(setting) for setting in settings if setting.default is MISSING]
    rest = [flag_parameter(setting) for setting in settings if setting.default is not MISSING]
    command.__signature__ = inspect.Signature([*required, *own, *rest])  # type: ignore[attr-defined]
    app.command(name, help=kind.__doc__)(command)


_add("target", TargetOptions, _run_target)
_add("draft", DraftOptions, _run_draft)
_add("eagle3", Eagle3Options, _run_eagle3)
_add("medusa", MedusaOptions, _run_medusa)
_add("mtp", MtpOptions, _run_mtp)
_add("dflash", DFlashOptions, _run_dflash)
_add("evaluate", EvaluateOptions, _run_evaluation)
