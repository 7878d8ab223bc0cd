"""Sets up .venv and runs the project's commands. Needs Python 3.11 or newer and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys

from scripts import environment

EXTRAS = {
    "demo": "serve",
    "serve": "serve",
    "chat": "serve",
    "generate": "serve",
    "test": "test",
    "test-all": "test",
    "lint": "dev",
    "setup": "dev",
}
USAGE = """usage: python3 run.py COMMAND [ARGUMENTS]

  demo       start the service on the embedded pair and show speculation off and on
  serve      the HTTP service        chat      talk in the terminal       generate  complete a prompt
  test       the test suite          test-all  with the full matrix       lint      what CI checks
  setup      only prepare .venv

PACELINE_TORCH chooses the torch build: "cpu", "default" (pip's own index), or a pip requirement."""


def commands(name: str, arguments: list[str]) -> list[list[str]]:
    """What a command runs, one after the other."""
    python = [str(environment.PYTHON), "-m"]
    if name == "setup":
        return []
    if name in ("test", "test-all"):
        shown = ["--durations=40", "-rs"] if os.environ.get("CI") else []  # the slowest tests, and why some are skipped
        chosen = ["-m", "not full"] if name == "test" else []
        # A file's tests stay together: they share models. Names of files or options mean a look at a part.
        workers = ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "loadfile"] if not arguments else []
        return [[*python, "pytest", *chosen, *shown, *workers, *arguments]]
    if name == "lint":
        return [
            [*python, "ruff", "check", *(arguments or ["."])],
            [*python, "ruff", "format", "--check", "."],
            [*python, "mypy"],
            [*python, "mypy", "--config-file", "mypy-tests.ini"],
            [str(environment.BIN / "lint-imports")],
            [str(environment.PYTHON), "scripts/check_banned.py"],
            [str(environment.PYTHON), "scripts/check_structure.py"],
        ]
    return [[*python, "paceline.cli.main", name, *arguments]]


def run(name: str, arguments: list[str]) -> int:
    if name in ("test", "test-all", "lint"):
        os.chdir(environment.ROOT)
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads cost more than they give
    sequence = commands(name, arguments)
    sys.stdout.flush()
    if len(sequence) == 1 and os.name != "nt":
        os.execv(sequence[0][0], sequence[0])  # noqa: S606 (signals reach the command itself)
    failed = [command for command in sequence if subprocess.run(command, check=False).returncode != 0]
    for command in failed:
        environment.say(f"failed: {' '.join(command)}")
    return 1 if failed else 0


def main(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    try:
        if name not in EXTRAS:
            raise environment.SetupError(f"There is no command {name!r}.", f"Choose one of: {', '.join(EXTRAS)}.")
        environment.check_python()
        environment.prepare(EXTRAS[name])
        return run(name, arguments[1:])
    except environment.SetupError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
