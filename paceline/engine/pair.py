"""Where the embedded target and draft lie."""

from __future__ import annotations

from pathlib import Path

EMBEDDED = Path(__file__).resolve().parent.parent / "pair"
EMBEDDED_TARGET = EMBEDDED / "target"
EMBEDDED_DRAFT = EMBEDDED / "draft"
