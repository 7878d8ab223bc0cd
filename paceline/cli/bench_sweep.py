"""Knows how one option at several values becomes as many engines to measure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from paceline.cli.engine_options import EngineChoice
from paceline.core.config import EngineConfig, SpeculativeConfig
from paceline.core.errors import ConfigError

EXAMPLE = "For example --sweep num_speculative_tokens=0,2,4."
DEPTH = "num_speculative_tokens"


@dataclass(frozen=True, slots=True)
class Swept:
    """An engine with one option at one of its values."""

    choice: EngineChoice
    option: str
    value: Any


def swept(engine: EngineChoice, sweep: str) -> list[Swept]:
    """
    Args:
        sweep: "option=value,value", an engine's or a drafter's option; 0 drafted tokens are no speculation.

    Raises:
        ConfigError: no such option, a value that cannot be, or a drafter's option without a drafter.
    """
    name, _, written = sweep.partition("=")
    option = name.strip().replace("-", "_")
    values = [_value(part.strip()) for part in written.split(",") if part.strip()]
    if not values:
        raise ConfigError(f"--sweep must be an option and its values, got {sweep!r}\n{EXAMPLE}")
    drafters = {item.name for item in fields(SpeculativeConfig)}
    known = drafters | {item.name for item in fields(EngineConfig)} - {"speculative"}
    if option not in known:
        raise ConfigError(f"--sweep: unknown option {option!r}\nChoose one of: {', '.join(sorted(known))}.")
    found = [Swept(_with(engine, option, value, of_drafter=option in drafters), option, value) for value in values]
    for one in found:
        one.choice.engine_config()
    return found


def _with(engine: EngineChoice, option: str, value: Any, *, of_drafter: bool) -> EngineChoice:
    if not of_drafter:
        return replace(engine, options={**engine.options, option: value})
    if option == DEPTH and value == 0:
        return replace(engine, speculative=None)
    return replace(engine, speculative={**_drafter(engine, option), option: value})


def _drafter(engine: EngineChoice, option: str) -> Mapping[str, Any]:
    from paceline.engine.pair import EMBEDDED_SPECULATION

    if isinstance(engine.speculative, Mapping):
        return engine.speculative
    if engine.speculative is None or engine.model is not None:
        raise ConfigError(f"--sweep {option} needs a drafter\nAdd --draft DIR, or --speculative-config JSON.")
    return EMBEDDED_SPECULATION


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
