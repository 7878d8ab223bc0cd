"""Knows the options of every command that runs a model, derived from ``EngineConfig``; nothing of any command."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.core.config import EngineConfig
from paceline.core.errors import ConfigError
from paceline.core.settings import settings_of

if TYPE_CHECKING:
    from paceline.engine.llm import LLM


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """A model, how it is sped up, and the options that the user set."""

    model: str | None
    speculative: Mapping[str, Any] | str | None
    """As ``LLM`` takes it: a mapping, "auto" or None."""
    options: Mapping[str, Any]

    def load(self) -> LLM:
        """Reads the model.

        Raises:
            PacelineError: naming what cannot work.
        """
        from paceline.engine.llm import LLM

        return LLM(self.model, speculative_config=self.speculative, **self.options)

    def arguments(self) -> list[str]:
        """The command-line arguments that give this choice again."""
        spelled = [] if self.model is None else [self.model]
        if self.speculative is None:
            spelled.append("--no-speculation")
        elif not isinstance(self.speculative, str):
            spelled += ["--speculative-config", json.dumps(self.speculative)]
        for name, value in self.options.items():
            flag = name.replace("_", "-")
            spelled += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
        return spelled


def speculative_choice(
    model: str | None, draft: str | None, config: str | None, num_tokens: int | None, *, off: bool
) -> Mapping[str, Any] | str | None:
    """What ``LLM`` takes as ``speculative_config``, from the four options.

    Raises:
        ConfigError: the options contradict each other, or the JSON is none.
    """
    if off:
        if draft or config:
            raise ConfigError("--no-speculation contradicts the drafter that was named\nLeave one of the two out.")
        return None
    if draft and config:
        raise ConfigError("--draft and --speculative-config name two drafters\nGive one of them.")
    length = {} if num_tokens is None else {"num_speculative_tokens": num_tokens}
    if draft:
        return {"method": "draft_model", "model": draft} | length
    if config:
        return _parse(config) | length
    if not length:
        return "auto"
    if model is not None:
        raise ConfigError("--num-speculative-tokens needs a drafter\nAdd --draft DIR, or --speculative-config JSON.")
    from paceline.engine.pair import EMBEDDED_DRAFT

    return {"method": "draft_model", "model": str(EMBEDDED_DRAFT)} | length


def _parse(config: str) -> dict[str, Any]:
    try:
        values = json.loads(config)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        example = '{"method": "ngram", "num_speculative_tokens": 4}'
        raise ConfigError(f"--speculative-config must be a JSON object, got {config!r}\nFor example '{example}'.")
    return values


def takes_engine(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command MODEL and all engine options; it receives them as ``engine: EngineChoice``.

    An engine option that the command has itself, such as a request's own ``--seed``, is the command's.
    """
    own = [item for item in _signature(command).parameters.values() if item.name != "engine"]
    names = {item.name for item in own}
    shared = [item for item in _signature(_choose).parameters.values() if item.name != "options"]
    derived = [item for item in _config_parameters() if item.name not in names]
    defaults = {item.name: item.default for item in derived}

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        mine = {name: value for name, value in values.items() if name in names}
        rest = {name: value for name, value in values.items() if name not in names}
        options = {name: rest.pop(name) for name in defaults}
        changed = {name: value for name, value in options.items() if value != defaults[name]}
        command(engine=_choose(**rest, options=changed), **mine)

    wrapper.__signature__ = inspect.Signature([*shared, *own, *derived])  # type: ignore[attr-defined]
    return wrapper


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function, eval_str=True)


def _choose(
    *,
    model: Annotated[
        str | None, typer.Argument(help="Model directory or Hub id. Default: the embedded pair.", show_default=False)
    ] = None,
    draft: Annotated[str | None, typer.Option(help="Directory or Hub id of the draft model.")] = None,
    speculative_config: Annotated[
        str | None, typer.Option(metavar="JSON", help='How to speculate, such as {"method": "ngram"}.')
    ] = None,
    num_speculative_tokens: Annotated[int | None, typer.Option(help="Draft tokens per step.")] = None,
    no_speculation: Annotated[bool, typer.Option("--no-speculation", help="Decode plainly.")] = False,
    options: Mapping[str, Any],
) -> EngineChoice:
    speculative = speculative_choice(model, draft, speculative_config, num_speculative_tokens, off=no_speculation)
    return EngineChoice(model, speculative, options)


def _config_parameters() -> list[inspect.Parameter]:
    """One option per field of ``EngineConfig``; PACELINE_<NAME> sets it too."""
    return [
        inspect.Parameter(
            setting.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=setting.default,
            annotation=Annotated[
                setting.kind | None if setting.optional else setting.kind,
                typer.Option(help=setting.about.help, envvar=setting.variable, rich_help_panel="Engine"),
            ],
        )
        for setting in settings_of(EngineConfig).values()
    ]
