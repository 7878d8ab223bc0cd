"""Knows the formats in which collections of prompts come as JSON lines; knows no tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.core.errors import ConfigError, shown
from paceline.core.registry import Registry


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """What is asked, turn by turn."""

    category: str
    turns: tuple[str, ...]
    chat: bool = True
    """False for text to go on with, such as the head of a function."""


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """One collection's form."""

    keys: frozenset[str]
    """What every line of it has, by which the format is recognised."""
    parse: Callable[[Mapping[str, Any]], TextPrompt]
    """Raises ValueError saying what is wrong with a line."""


prompt_formats: Registry[PromptFormat] = Registry("prompt format")

MT_BENCH = frozenset({"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"})
"""Spec-Bench reports these together, as multi-turn conversation."""


def _text(fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key!r} must be text, got {shown(value)}")
    return value


def _spec_bench(fields: Mapping[str, Any]) -> TextPrompt:
    category, turns = _text(fields, "category"), fields["turns"]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise ValueError(f"'turns' must be a list of texts, got {shown(turns)}")
    return TextPrompt("mt_bench" if category in MT_BENCH else category, tuple(turns))


prompt_formats.add("spec-bench")(PromptFormat(frozenset({"question_id", "category", "turns"}), _spec_bench))
prompt_formats.add("humaneval")(
    PromptFormat(
        frozenset({"task_id", "prompt"}), lambda fields: TextPrompt("humaneval", (_text(fields, "prompt"),), chat=False)
    )
)
prompt_formats.add("gsm8k")(
    PromptFormat(frozenset({"question", "answer"}), lambda fields: TextPrompt("gsm8k", (_text(fields, "question"),)))
)
prompt_formats.add("plain")(
    PromptFormat(
        frozenset({"prompt"}),
        lambda fields: TextPrompt(str(fields.get("category", "plain")), (_text(fields, "prompt"),), chat=False),
    )
)


def read_prompts(path: Path, form: str | None = None) -> list[TextPrompt]:
    """Every prompt of a JSON-lines file, in its order; empty lines are skipped.

    Args:
        form: a name in ``prompt_formats``; None recognises it by the keys of the first line.

    Raises:
        ConfigError: the file cannot be read or is empty, or the line that is wrong and why.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}\nGive a file of JSON lines.") from None
    chosen = None if form is None else prompt_formats[form]
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = _object(line)
            chosen = chosen or _recognised(fields)
            missing = sorted(chosen.keys - set(fields))
            if missing:
                raise ValueError(f"{missing[0]!r} is missing")
            prompts.append(chosen.parse(fields))
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: {error}\nMend the line or leave it out.") from None
    if not prompts:
        raise ConfigError(f"{path} holds no prompts\nGive a file of JSON lines.")
    return prompts


def _object(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise ValueError(f"must be a JSON object, got {shown(fields)}")
    return fields


def _recognised(fields: Mapping[str, Any]) -> PromptFormat:
    """The first format, most demanding first as they are registered, whose keys are all there."""
    for name in prompt_formats:
        if prompt_formats[name].keys <= set(fields):
            return prompt_formats[name]
    raise ValueError(f"no known format has the keys {', '.join(sorted(fields))[:100]}")
