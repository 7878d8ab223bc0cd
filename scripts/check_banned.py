"""Fails when the code uses a construct through which data could become code."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("paceline", "tests", "scripts", "examples", "run.py")
UNPICKLERS = {"load", "loads", "Unpickler"}


def dotted(node: ast.expr) -> str:
    """The name a call is made by, such as ``torch.load``."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def is_true(call: ast.Call, keyword: str) -> bool:
    return any(
        item.arg == keyword and isinstance(item.value, ast.Constant) and item.value.value is True
        for item in call.keywords
    )


def complaint(call: ast.Call) -> str | None:
    name = dotted(call.func)
    module, _, function = name.rpartition(".")
    if name in ("eval", "exec", "builtins.eval", "builtins.exec"):
        return f"{name}() runs text as code"
    if module in ("pickle", "cPickle", "dill", "marshal", "shelve") and function in UNPICKLERS | {"open"}:
        return f"{name}() runs code that lies in the data"
    if name == "torch.load" and not is_true(call, "weights_only"):
        return "torch.load() without weights_only=True runs code that lies in the file"
    if is_true(call, "shell"):
        return f"{name}(shell=True) hands text to a shell"
    return None


def complaints(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "pickle":
            yield f"{path}:{node.lineno}: from pickle import hides what is called"
        if isinstance(node, ast.Call) and (found := complaint(node)):
            yield f"{path}:{node.lineno}: {found}"


def main(places: list[str]) -> int:
    roots = [Path(place) for place in places] or [ROOT / place for place in PLACES]
    files = [file for root in roots for file in (sorted(root.rglob("*.py")) if root.is_dir() else [root])]
    found = [line for file in files if file.exists() for line in complaints(file)]
    for line in found:
        print(line)
    print(f"{len(files)} files, {len(found)} banned calls")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
