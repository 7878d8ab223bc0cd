"""Knows which settings a command has, and resolves them for it: the same way for every command."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from paceline.cli.engine_options import EngineChoice, engine_choice
from paceline.cli.flags import flag_parameter, keyword
from paceline.cli.terminal import be_quiet
from paceline.core.config import EngineConfig, SpeculativeConfig
from paceline.core.resolution import FILE_NAME, Resolution, Section, config_files, resolve
from paceline.core.service_config import Limits, ServiceConfig
from paceline.core.settings import About, check_fields, settings_of

CONFIG = "config"
HELP = f"Every option is also a variable, PACELINE_<OPTION>, and a key of {FILE_NAME}: see `paceline config show`."


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    """Which model runs, whether it speculates, and what is said beside its answers."""

    model: Annotated[str | None, About("Directory or Hub id; by default the embedded pair.", positional=True)] = None
    speculation: Annotated[bool, About("Draft tokens and verify them; without, decode plainly.")] = True
    speculative_config: Annotated[
        str | None, About('All of how to speculate as one JSON object, such as {"method": "ngram"}.')
    ] = None

    quiet: Annotated[bool, About("Print results and errors only.")] = False

    def __post_init__(self) -> None:
        check_fields(self)


MODEL = Section("", ModelChoice, "Model")
SPECULATION = Section("speculative", SpeculativeConfig, "Speculation")
ENGINE = Section("engine", EngineConfig, "Engine")
SERVICE = Section("service", ServiceConfig, "Service")
LIMITS = Section("limits", Limits, "Limits of the service")
SECTIONS = (MODEL, SPECULATION, ENGINE, SERVICE, LIMITS)

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help=f"TOML file of settings; by default ./{FILE_NAME} and the user's."),
]


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the flags of the settings that its parameters ask for, and hands them over resolved.

    A parameter annotated ``EngineChoice`` asks for the model, its speculation and the engine; one annotated with a
    section's dataclass for that section; ``Resolution`` for all. A setting whose flag the command has itself, such as
    a request's own ``--seed``, has no flag there; its variable and its key in the file still count.
    """
    signature = inspect.signature(command, eval_str=True)
    asked = {item.name: item.annotation for item in signature.parameters.values()}
    sections = _sections(asked.values())
    resolved = {name: kind for name, kind in asked.items() if kind in _resolvable()}
    own = [item for name, item in signature.parameters.items() if name not in resolved]
    taken = {item.name for item in own}
    derived = [parameter for parameter in _parameters(sections) if parameter.name not in taken]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        config = values.pop(CONFIG)
        flags = {item.name: values.pop(item.name) for item in derived}
        given = {name: value for name, value in flags.items() if value not in (None, [])}
        resolution = resolve(SECTIONS, flags=given, files=config_files(config))
        if resolution.found[MODEL.name]["quiet"].value:
            be_quiet()
        command(**values, **{name: _build(kind, resolution, config) for name, kind in resolved.items()})

    places = [keyword(CONFIG, ConfigFile, None)]
    wrapper.__signature__ = inspect.Signature([*own, *places, *derived])  # type: ignore[attr-defined]
    return wrapper


def _resolvable() -> list[Any]:
    return [EngineChoice, Resolution, *(section.kind for section in SECTIONS)]


def _sections(kinds: Any) -> Sequence[Section]:
    """The sections that parameters of these kinds need, in their order."""
    wanted = set()
    for kind in kinds:
        if kind is Resolution:
            return SECTIONS
        wanted |= {MODEL, SPECULATION, ENGINE} if kind is EngineChoice else set()
        wanted |= {section for section in SECTIONS if section.kind is kind}
    return [section for section in SECTIONS if section in wanted]


def _parameters(sections: Sequence[Section]) -> list[inspect.Parameter]:
    return [
        flag_parameter(setting, panel=section.title)
        for section in sections
        for setting in settings_of(section.kind).values()
    ]


def _build(kind: Any, resolution: Resolution, config: Path | None) -> Any:
    if kind is Resolution:
        return resolution
    return engine_choice(resolution, config) if kind is EngineChoice else resolution.build(kind)
