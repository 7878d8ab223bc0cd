"""What the documentation shows of the code is the code."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from tests.support.proposers import ModelTreeProposer, model_tree

ARCHITECTURE = Path(__file__).resolve().parents[1] / "docs" / "architecture.md"


def bare(tree: ast.AST) -> str:
    """Source without annotations, docstrings, and the methods that the page leaves out."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef():
                node.returns = None
            case ast.arg():
                node.annotation = None
            case ast.ClassDef():
                kept = [part for part in node.body if not isinstance(part, ast.Expr)]
                node.body = [part for part in kept if getattr(part, "name", "") not in ("observe", "forget")]
    return ast.unparse(tree).replace(": Any = ", " = ")


@pytest.mark.parametrize("part", [ModelTreeProposer, model_tree])
def test_the_example_proposer_is_the_one_that_is_tested(part: type) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", ARCHITECTURE.read_text(encoding="utf-8"), re.DOTALL)
    shown = next(node for node in ast.parse(example).body if getattr(node, "name", "") == part.__name__)
    assert bare(shown) == bare(ast.parse(inspect.getsource(part)))
    assert len(bare(shown)) > 80


def test_files_that_the_page_names_exist() -> None:
    named = set(re.findall(r"`([a-z_/]+/[a-z_]*(?:\.py|\.h|/))`", ARCHITECTURE.read_text(encoding="utf-8")))
    assert len(named) > 15
    root = ARCHITECTURE.parents[1]
    assert [name for name in named if not (root / name).exists() and not (root / "paceline" / name).exists()] == []
