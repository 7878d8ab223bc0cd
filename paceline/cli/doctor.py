"""``paceline doctor``: whether this machine and installation are fit, and what the chosen model would take."""

from __future__ import annotations

import sys
from dataclasses import asdict

import typer

import paceline
from paceline.cli.check import BROKEN, OK, WARNING, Check
from paceline.cli.checks import Subject, check_all
from paceline.cli.engine_options import EngineChoice
from paceline.cli.terminal import FAINT, AsJson, console, print_json
from paceline.core.resolution import Resolution

EXIT_CODES = {OK: 0, WARNING: 1, BROKEN: 2}
STYLES = {OK: "green", WARNING: "yellow", BROKEN: "red"}


def doctor(*, engine: EngineChoice, resolution: Resolution, as_json: AsJson = False) -> None:
    """Looks for what is wrong here, and tells what MODEL would take. Exit code: 0 fine, 1 warnings, 2 broken."""
    checks = check_all(Subject(resolution, engine))
    worst = max((check.status for check in checks), key=list(EXIT_CODES).index)
    if as_json:
        found = {check.name: {key: value for key, value in asdict(check).items() if key != "name"} for check in checks}
        print_json({"paceline": paceline.__version__, "status": worst, "checks": found})
    else:
        _print(checks)
    if EXIT_CODES[worst]:
        raise typer.Exit(EXIT_CODES[worst])


def _print(checks: list[Check]) -> None:
    out = console(sys.stdout)
    out.out(f"paceline {paceline.__version__}", style=FAINT)
    for check in checks:
        out.out(f"{check.status:<8} ", style=STYLES[check.status], end="")
        out.out(f"{check.name:<9} {check.text}")
        if check.fix is not None:
            out.out(f"{'':<19}{check.fix}", style=FAINT if check.status == OK else STYLES[check.status])
