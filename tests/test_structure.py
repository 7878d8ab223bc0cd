"""The linters' rules of shape: each finds a planted fault, and leaves alone what is right."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import paceline
from scripts.check_structure import MAX_FILE_LINES, MAX_FUNCTION_LINES, complaints

ROOT = Path(__file__).resolve().parents[1]


def function(lines: int, doc: int = 0) -> str:
    """A function of so many lines with its ``def``, and a docstring of further ones."""
    text = ['    """', *["    words"] * (doc - 2), '    """'] if doc else []
    return "\n".join(["def work():", *text, *["    pass"] * (lines - 1)])


CLEAN = {
    "paceline/a.py": function(MAX_FUNCTION_LINES, doc=20) + "\n\n\nclass One: ...\n",
    "paceline/b.py": "x = 1\n" * MAX_FILE_LINES,
    "paceline/cli/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n",
    "scripts/d.py": "class One: ...\n",
}


def checked(root: Path, files: dict[str, str]) -> list[str]:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return list(complaints(root))


def test_what_is_right_is_left_alone(tmp_path):
    assert checked(tmp_path, CLEAN) == []


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("paceline/x.py", function(MAX_FUNCTION_LINES + 1), r"paceline/x.py:1: work has 41 lines"),
        ("scripts/x.py", "async " + function(MAX_FUNCTION_LINES + 1), r"scripts/x.py:1: work has 41 lines"),
        ("paceline/x.py", "x = 1\n" * (MAX_FILE_LINES + 1), r"paceline/x.py:1: 251 lines"),
        ("paceline/x.py", "class One: ...\n", r"paceline/x.py:1: class One is defined in paceline/a.py:\d+ too"),
        ("paceline/x.py", "def f():\n    class One: ...\n", r"paceline/x.py:2: class One"),
        ("paceline/x.py", "from typing import TYPE_CHECKING as T\n", r"paceline/x.py:1: TYPE_CHECKING"),
        (
            "paceline/x.py",
            "import typing\nif typing.TYPE_CHECKING:\n    import os\n",
            r"paceline/x.py:2: TYPE_CHECKING",
        ),
    ],
)
def test_a_planted_fault_is_found(tmp_path, name, text, complaint):
    (found,) = checked(tmp_path, CLEAN | {name: text})
    assert re.match(complaint, found)


@pytest.mark.parametrize(
    ("first", "second"), [("one", "two"), ("room.one", "room.two"), ("room.deep.one", "room.deep.two")]
)
def test_files_that_import_each_other_are_found(tmp_path, first, second):
    """The contract of pyproject.toml, held by a package that keeps it and then by one that does not."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (acyclic,) = (contract for contract in contracts if contract["type"] == "acyclic_siblings")
    ancestors = [name.replace("paceline", "planted") for name in acyclic["ancestors"]]
    (tmp_path / "lint.toml").write_text(
        "[tool.importlinter]\nroot_package = 'planted'\n[[tool.importlinter.contracts]]\n"
        f"name = 'acyclic'\ntype = 'acyclic_siblings'\nancestors = {ancestors}\n"
    )
    paths = [tmp_path.joinpath("planted", *name.split(".")).with_suffix(".py") for name in (first, second)]
    paths[0].parent.mkdir(parents=True)
    for folder in [paths[0].parent, *paths[0].parent.parents]:
        if folder != tmp_path and tmp_path in folder.parents:
            (folder / "__init__.py").touch()

    def lint() -> int:
        code = (
            "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports('lint.toml', no_cache=True))"
        )
        return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True).returncode

    paths[0].write_text(f"import planted.{second}\n")
    paths[1].touch()
    assert lint() == 0
    paths[1].write_text(f"import planted.{first}\n")
    assert lint() == 1


def test_the_stub_types_every_public_name():
    stub = (ROOT / "paceline" / "__init__.pyi").read_text()
    typed = set(re.findall(r"import (\w+) as \1\n", stub))
    assert typed | {"__version__"} == set(paceline.__all__)
