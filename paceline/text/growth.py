"""Knows how far a tokenizer may make a text longer before it splits it, or after it has joined it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import tokenizers

from paceline.core.errors import CheckpointError

MAX_FACTOR = 64
"""How many characters may become of one; published tokenizers make at most about 18, of one Arabic ligature."""
MAX_ADDED = 1024
"""Characters or tokens put before and behind a text."""


def check_growth(name: str, backend: tokenizers.Tokenizer) -> None:
    """
    Raises:
        CheckpointError: the normalizer or the decoder multiplies a text, or the post-processor its tokens.
    """
    for part in ("normalizer", "decoder"):
        factor, added = _growth(_steps(_state(getattr(backend, part))))
        if factor > MAX_FACTOR or added > MAX_ADDED:
            raise _too_long(name, f"its {part} makes {factor or added:.0f} characters of one")
    for step in _steps(_state(backend.post_processor)):
        pieces = step.get("single") or []
        texts = sum("Sequence" in piece for piece in pieces)
        ids = sum(len(token.get("ids") or ()) for token in (step.get("special_tokens") or {}).values())
        if texts > 1 or len(pieces) + ids > MAX_ADDED:
            raise _too_long(name, f"its post_processor writes a text {texts} times, with {len(pieces) - texts} tokens")


def _too_long(name: str, cause: str) -> CheckpointError:
    return CheckpointError(f"{name}: {cause}\nUse a tokenizer whose output is about as long as its input.")


def _state(part: Any) -> Any:
    """What tokenizer.json has of it."""
    return None if part is None else json.loads(part.__getstate__())


def _steps(state: Any) -> Iterator[dict[str, Any]]:
    """A part's steps, in their order."""
    if isinstance(state, dict):
        nested = next((state[key] for key in ("normalizers", "decoders", "processors") if key in state), None)
        if nested is None:
            yield state
        for inner in nested or ():
            yield from _steps(inner)


def _growth(steps: Iterator[dict[str, Any]]) -> tuple[float, int]:
    """(characters that may become of one, characters put before a text)."""
    factor, added = 1.0, 0
    for step in steps:
        if step.get("type") == "Replace":
            pattern, content = step["pattern"], len(step["content"])
            # A regular expression may match nothing, and so before each character.
            factor *= max(1.0, content / max(1, len(pattern["String"])) if "String" in pattern else 1 + content)
        elif step.get("type") == "Prepend":
            added += len(step["prepend"])
        elif step.get("type") == "Precompiled":
            factor *= max(1.0, _longest(step["precompiled_charsmap"]) / 8)
    return factor, added


def _longest(charsmap: str) -> int:
    """Bytes of the longest replacement in SentencePiece's table: a trie with its size before, then texts."""
    data = base64.b64decode(charsmap)
    texts = data[4 + int.from_bytes(data[:4], "little") :]
    return max(map(len, texts.split(b"\0")), default=0)
