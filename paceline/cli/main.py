"""Knows the commands and how each ends: exit codes, errors as cause and fix. The commands know the rest."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Annotated

import typer
from typer.main import get_command

import paceline
from paceline.cli.bench import app as bench
from paceline.cli.chat import chat
from paceline.cli.config import app as config
from paceline.cli.demo import demo
from paceline.cli.doctor import doctor
from paceline.cli.generate import generate
from paceline.cli.models import models
from paceline.cli.quantize import quantize
from paceline.cli.serve import serve
from paceline.cli.settings import HELP as SETTINGS_HELP
from paceline.cli.settings import takes_settings
from paceline.cli.surroundings import end_streams, open_streams, refusal_of
from paceline.cli.terminal import print_error
from paceline.cli.train import app as train
from paceline.core.directory import check_directory
from paceline.core.errors import PacelineError

FAILED = 2
INTERRUPTED = 130

app = typer.Typer(
    name="paceline", help=paceline.__doc__, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode="rich"
)
for command in (serve, chat, generate, demo, doctor):
    app.command(epilog=SETTINGS_HELP)(takes_settings(command))
app.command()(models)
app.command()(quantize)
app.add_typer(bench)
app.add_typer(config)
app.add_typer(train)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"paceline {paceline.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[  # noqa: ARG001 (acts when it is read)
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Low-latency LLM inference whose speculative decoding never changes the text."""
    check_directory()


def run(arguments: list[str]) -> int:
    """Runs one command; returns the exit code: 0 done, 1 not as it should be, 2 refused, 130 interrupted."""
    try:
        code = get_command(app).main(arguments or ["--help"], prog_name="paceline", standalone_mode=False)
    except PacelineError as error:
        _tell(error if "\n" in str(error) else f"{error}\nSee paceline --help.")
        return FAILED
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:
        # Usage errors of typer's parser; which class they are differs between its versions.
        if not hasattr(error, "format_message"):
            refusal = refusal_of(error)
            if refusal is None:
                raise
            end_streams()
            _tell(refusal)
            return FAILED
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "paceline"
        _tell(f"{error.format_message()}\nSee {path} --help.")
        return FAILED
    return code if isinstance(code, int) else 0


def _tell(error: object) -> None:
    """As far as it can be told: standard error may be on the same full device."""
    with suppress(OSError):
        print_error(error)


def main() -> None:
    # Weights are read from local files by several libraries that like to talk; the command's own output matters more.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    open_streams()
    code = run(sys.argv[1:])
    failed = end_streams()
    if failed is not None and code == 0:
        code = FAILED
        if failed.errno != errno.EPIPE and (refusal := refusal_of(failed)) is not None:
            _tell(refusal)
            end_streams()
    sys.exit(code)


if __name__ == "__main__":
    main()
