"""Knows how far a tokenizer may make a text longer before it splits it, or after it has joined it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers

from paceline.core.errors import CheckpointError

MAX_FACTOR = 64
"""How many characters may become of one; published tokenizers make at most about 18, of one Arabic ligature."""
MAX_ADDED = 1024
"""Tokens put before and behind a text."""
MAX_ENTRY = 8192
"""Characters of one token; the longest of published tokenizers have a few hundred."""
MAX_AFFIX = 64
"""Characters that mark where a token stands in its word; published tokenizers have at most four."""
STEPS = {"ByteLevel": 4, "Metaspace": 2}
"""Characters that may become of one in steps that are meant to: its bytes, or a mark before it."""
PARTS = ("normalizer", "pre_tokenizer", "decoder")


def check_written(name: str, values: Mapping[str, Any]) -> None:
    """The same of what tokenizer.json says, before it is loaded: its fields may be of any type.

    Raises:
        CheckpointError: as ``check_growth``.
    """
    for part in PARTS:
        _check_part(name, part, values.get(part))
    _check_template(name, values.get("post_processor"))
    for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
        length = len(_text(_of(values.get("model"), affix)))
        if length > MAX_AFFIX:
            raise _too_long(name, f"its {affix} has {length} characters, at most {MAX_AFFIX} are accepted")


def check_growth(name: str, backend: tokenizers.Tokenizer) -> None:
    """
    Raises:
        CheckpointError: the normalizer, the pre-tokenizer or the decoder multiplies a text, or the post-processor its
            tokens.
    """
    for part in PARTS:
        _check_part(name, part, _state(getattr(backend, part)))
    _check_template(name, _state(backend.post_processor))


def check_entries(name: str, backend: tokenizers.Tokenizer) -> None:
    """Raises CheckpointError if a token, added ones included, is very long: an answer repeats it at will."""
    longest = max(map(len, backend.get_vocab()), default=0)
    if longest > MAX_ENTRY:
        raise _too_long(name, f"a token has {longest} characters, at most {MAX_ENTRY} are accepted")


def _check_part(name: str, part: str, state: Any) -> None:
    factor = _growth(_steps(state))
    if factor > MAX_FACTOR:
        raise _too_long(name, f"its {part} makes {factor:.4g} characters of one")


def _check_template(name: str, state: Any) -> None:
    written = 0
    for step in _steps(state):
        pieces = [piece for piece in _listed(step.get("single")) if isinstance(piece, dict)]
        texts = sum("Sequence" in piece for piece in pieces)
        written += sum(_num_tokens(piece, step.get("special_tokens")) for piece in pieces)
        if texts > 1 or written > MAX_ADDED:
            raise _too_long(name, f"its post_processor writes a text {texts} times, with {written} tokens")


def _num_tokens(piece: Mapping[str, Any], special: Any) -> int:
    """How many tokens a piece of a template that names a special token stands for."""
    named = piece.get("SpecialToken")
    token = _of(special, named.get("id") if isinstance(named, dict) else None)
    return len(_listed(_of(token, "ids")))


def _too_long(name: str, cause: str) -> CheckpointError:
    return CheckpointError(f"{name}: {cause}\nUse a tokenizer whose output is about as long as its input.")


def _state(part: Any) -> Any:
    """What tokenizer.json has of it."""
    return None if part is None else json.loads(part.__getstate__())


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _of(values: Any, key: Any) -> Any:
    return values.get(key) if isinstance(values, dict) and isinstance(key, str) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _steps(state: Any) -> Iterator[dict[str, Any]]:
    """A part's steps, in their order."""
    if isinstance(state, dict):
        yield state
        for key in ("normalizers", "pretokenizers", "decoders", "processors"):
            for inner in _listed(state.get(key)):
                yield from _steps(inner)


def _growth(steps: Iterator[dict[str, Any]]) -> float:
    """Characters that may become of one; steps are known by what they hold, since some files leave their type out."""
    factor, added = 1.0, 0
    for step in steps:
        pattern, content = step.get("pattern"), len(_text(step.get("content")))
        if "content" in step and pattern is not None:
            found = pattern if isinstance(pattern, str) else _text(_of(pattern, "String"))
            # A regular expression may match nothing, and so before each character.
            factor *= max(1.0, content / len(found) if found else 1 + content)
        added += len(_text(step.get("prepend")))
        factor *= STEPS.get(_text(step.get("type")), 1)
        factor *= max(1.0, _longest(_text(step.get("precompiled_charsmap"))) / 8)
    # Put before each piece of a text between two added tokens, which may be one character.
    return min(factor, 1e300) * (1 + added)


def _longest(charsmap: str) -> int:
    """Bytes of the longest replacement in SentencePiece's table: a trie with its size before, then texts."""
    try:
        data = base64.b64decode(charsmap)
    except ValueError:
        return 0  # the library says so
    texts = data[4 + int.from_bytes(data[:4], "little") :]
    return max(map(len, texts.split(b"\0")), default=0)
