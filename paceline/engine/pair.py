"""Where the embedded target and draft lie, and how the one drafts for the other."""

from __future__ import annotations

from pathlib import Path

EMBEDDED = Path(__file__).resolve().parent.parent / "pair"
EMBEDDED_TARGET = EMBEDDED / "target"
EMBEDDED_DRAFT = EMBEDDED / "draft"
EMBEDDED_SPECULATION = {"method": "draft_model", "model": str(EMBEDDED_DRAFT), "num_speculative_tokens": 4}
