"""Makes tokenizers whose native code gives up on some texts, as regular expressions do at their limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers

TRAP = "a" * 40 + "b"
"""Panics where the pre-tokenizer's pattern is ``(a+)+$``; every text without a long row of ``a`` is fine."""
PATTERN = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
CLEAN_UP = {"type": "Replace", "pattern": {"Regex": "(a|a|a|a|a|a|a|a)+$"}, "content": ""}
"""Of a decoder; a few tokens are enough for this pattern, since an answer is decoded few at a time."""


def add_trap(directory: Path) -> None:
    """Puts the pattern before what the tokenizer in ``directory`` does."""
    _edit(directory, "pre_tokenizer", "pretokenizers", PATTERN)


def add_decoder_trap(directory: Path) -> None:
    """Has answers decoded through a pattern: a row of ``a`` and another letter panics."""
    _edit(directory, "decoder", "decoders", CLEAN_UP, last=True)


def panic() -> BaseException:
    """A real one."""
    backend = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex("(a+)+$"), "isolated")
    try:
        backend.encode(TRAP)
    except BaseException as error:
        return error
    raise AssertionError("the library has become able to do this")


def _edit(directory: Path, part: str, parts: str, new: dict[str, Any], *, last: bool = False) -> None:
    path = directory / "tokenizer.json"
    values = json.loads(path.read_text())
    both = [values[part], new] if last else [new, values[part]]
    values[part] = {"type": "Sequence", parts: both}
    path.write_text(json.dumps(values))
