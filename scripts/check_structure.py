"""Fails when the code breaks what the house says of its shape: sizes, class names, imports for types alone."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, COMMANDS = "paceline", "paceline/cli"
PLACES = (PACKAGE, "scripts")
MAX_FUNCTION_LINES = 40  # without the docstring, so that nothing is left unsaid to keep a function short
MAX_FILE_LINES = 250

Function = ast.FunctionDef | ast.AsyncFunctionDef


def span(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def num_lines(function: Function) -> int:
    """Lines from ``def`` to the end, without the docstring's."""
    return span(function) - (span(function.body[0]) if ast.get_docstring(function) is not None else 0)


def size_complaints(name: str, source: str, tree: ast.AST) -> Iterator[str]:
    if (count := len(source.splitlines())) > MAX_FILE_LINES:
        yield f"{name}:1: {count} lines, a file has at most {MAX_FILE_LINES}"
    for node in ast.walk(tree):
        if isinstance(node, Function) and (count := num_lines(node)) > MAX_FUNCTION_LINES:
            yield f"{name}:{node.lineno}: {node.name} has {count} lines, a function has at most {MAX_FUNCTION_LINES}"


def type_checking_complaints(name: str, tree: ast.AST) -> Iterator[str]:
    """Modules of the command line may import types alone: a command starts at once, whatever it loads later."""
    if name.startswith(f"{COMMANDS}/"):
        return
    for node in ast.walk(tree):
        imported = isinstance(node, ast.ImportFrom) and any(item.name == "TYPE_CHECKING" for item in node.names)
        if imported or (isinstance(node, ast.Attribute) and node.attr == "TYPE_CHECKING"):
            yield f"{name}:{node.lineno}: TYPE_CHECKING hides an import from the rule that rooms import one way"


def class_complaints(trees: Iterable[tuple[str, ast.AST]]) -> Iterator[str]:
    """A class name is defined once in the package, so that a name says which class is meant."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{name}:{node.lineno}")
    for class_name, (first, *others) in places.items():
        yield from (f"{other}: class {class_name} is defined in {first} too" for other in others)


def complaints(root: Path) -> Iterator[str]:
    """Everything that is wrong with the checkout at ``root``."""
    files = [file for place in PLACES for file in sorted((root / place).rglob("*.py"))]
    sources = {file.relative_to(root).as_posix(): file.read_text(encoding="utf-8") for file in files}
    trees = {name: ast.parse(source, filename=name) for name, source in sources.items()}
    for name, tree in trees.items():
        yield from size_complaints(name, sources[name], tree)
        yield from type_checking_complaints(name, tree)
    yield from class_complaints((name, tree) for name, tree in trees.items() if name.startswith(f"{PACKAGE}/"))


def main(root: Path) -> int:
    found = list(complaints(root))
    for line in found:
        print(line)
    print(f"structure: {len(found)} complaints")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if sys.argv[1:] else ROOT))
