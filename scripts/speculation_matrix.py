"""Writes docs/speculation-matrix.md from what tests recorded: python3 scripts/speculation_matrix.py.

Record first: ``python3 -m pytest tests/invariance/methods --matrix docs/results/speculation-matrix.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "docs" / "results" / "speculation-matrix.json"
PAGE = ROOT / "docs" / "speculation-matrix.md"
WORKS, REFUSED = "works", "refused"
Cells = dict[str, dict[str, dict[str, Any]]]

HEAD = """# Which method works with what

Each cell is a test that ran and passed on tiny random models: the texts were those without drafts, or, under a ratio
verifier, a seed repeated its text and greedy texts were those without drafts. Where pages, contiguous K/V and
disturbances were tested, the target's K/V were compared after every step with a pass that has no cache. The columns
`native` ran on native kernels, all others in torch in float64, none on CUDA. `refused` means an error at the start,
whose first line stands below. A row that ends in "tree" sets `draft_top_k`.

Written by `scripts/speculation_matrix.py` from `docs/results/speculation-matrix.json`, which the tests write.
"""
TABLES = {
    "Texts": ("controls", "batch, n", "abort", "preemption", "chunked prompts", "prefix cache"),
    "K/V": ("pages of 1", "pages of 4", "pages of 16", "few pages", "contiguous K/V", "no K/V cache"),
    "Arithmetic": ("reference attention", "native float32", "native bfloat16", "native int8", "native int4"),
    "Ratio verifiers": ("verifier token", "verifier block", "verifier tree", "verifier traversal"),
}
"""Title -> columns. Torch in float64 computes all but the columns "native"."""


def page(cells: Cells) -> str:
    """The whole page."""
    known = [feature for columns in TABLES.values() for feature in columns]
    strange = {feature for row in cells.values() for feature in row} - set(known)
    if strange:
        raise ValueError(f"features that belong to no table of the page: {sorted(strange)}")
    tables = [_table(title, columns, cells) for title, columns in TABLES.items()]
    return "\n".join([HEAD, *tables, _tests(known, cells), _refusals(cells)])


def _table(title: str, features: Iterable[str], cells: Cells) -> str:
    lines = [["method", *features], ["---", *("---" for _ in features)]]
    for method, row in sorted(cells.items()):
        lines.append([f"`{method}`", *(_outcome(row[feature]) for feature in features)])
    return f"## {title}\n\n" + _rows(lines)


def _rows(lines: Iterable[list[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _outcome(cell: dict[str, Any]) -> str:
    return WORKS if cell["refused"] is None else REFUSED


def _tests(features: Iterable[str], cells: Cells) -> str:
    """Ids differ by the method alone, which stands at their end."""
    lines = [["column", "tests of each cell; METHOD is the row"], ["---", "---"]]
    for feature in features:
        found = {
            re.sub(rf"{re.escape(method)}\]$", "METHOD]", name)
            for method, row in cells.items()
            for name in row[feature]["tests"]
        }
        lines.append([feature, "<br>".join(f"`{name}`" for name in sorted(found))])
    return "## The tests\n\n" + _rows(lines)


def _refusals(cells: Cells) -> str:
    lines = [["method", "column", "reason"], ["---", "---", "---"]]
    for method, row in sorted(cells.items()):
        for feature, cell in sorted(row.items()):
            if cell["refused"] is not None:
                lines.append([f"`{method}`", feature, cell["refused"]])
    return "## What is refused, and why\n\n" + _rows(lines)


if __name__ == "__main__":
    PAGE.write_text(page(json.loads(DATA.read_text(encoding="utf-8"))), encoding="utf-8")
