"""Knows how resolved settings become a model to load: which drafter, which engine options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.core.config import EngineConfig, SpeculativeConfig
from paceline.core.errors import ConfigError
from paceline.core.resolution import Found, Resolution, Source

if TYPE_CHECKING:
    from paceline.engine.llm import LLM

Values = Mapping[str, Found]


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """A model, how it is sped up, and the options that somebody set."""

    model: str | None
    speculative: Mapping[str, Any] | str | None
    """As ``LLM`` takes it: a mapping, "auto" or None."""
    options: Mapping[str, Any]
    config: Path | None = None
    """The file named by --config."""
    sources: Mapping[str, Source] = field(default_factory=dict, compare=False)
    """Where each engine or speculation option came from."""

    def load(self) -> LLM:
        """Reads the model.

        Raises:
            PacelineError: naming what cannot work.
        """
        from paceline.engine.llm import LLM

        self.check_parts()
        return LLM(self.model, speculative_config=self.speculative, **self.options)

    def check_parts(self) -> None:
        """Looks up every part that the choice names, before any model is read.

        Raises:
            ConfigError: naming the flag, the variable or the file's key, and the parts there are.
        """
        from paceline.cli.parts import check_parts

        speculative = self.speculative if isinstance(self.speculative, Mapping) else {}
        check_parts({**self.options, **speculative}, self.sources)

    def engine_config(self) -> EngineConfig:
        """The options as ``LLM`` builds them.

        Raises:
            ConfigError: an option that cannot be.
        """
        from paceline.engine.pair import EMBEDDED_SPECULATION

        embedded = EMBEDDED_SPECULATION if self.model is None else None
        speculative = embedded if isinstance(self.speculative, str) else self.speculative
        return EngineConfig.of(**self.options, speculative=SpeculativeConfig.of(speculative))

    def arguments(self) -> list[str]:
        """The command-line arguments that give this choice again, whatever variables and files say."""
        spelled = [] if self.model is None else [self.model]
        spelled += [] if self.config is None else ["--config", str(self.config)]
        if self.speculative is None:
            spelled.append("--no-speculation")
        elif not isinstance(self.speculative, str):
            spelled += ["--speculative-config", json.dumps(self.speculative)]
        for name, value in self.options.items():
            flag = name.replace("_", "-")
            spelled += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
        return spelled


def engine_choice(resolution: Resolution, config: Path | None = None) -> EngineChoice:
    """The choice that resolved settings make.

    Raises:
        ConfigError: settings of speculation that contradict each other.
    """
    chosen = resolution.found[""]
    model = chosen["model"].value
    speculation = resolution.found["speculative"]
    speculative = speculative_choice(model, speculation, chosen["speculative_config"], chosen["speculation"])
    given = {**resolution.found["engine"], **speculation}
    sources = {name: found.source for name, found in given.items() if found.given}
    return EngineChoice(model, speculative, resolution.given("engine"), config, sources)


def speculative_choice(
    model: str | None, values: Values, config: Found, wanted: Found
) -> Mapping[str, Any] | str | None:
    """What ``LLM`` takes as ``speculative_config``.

    A drafter is named by its method, its model or a whole JSON object. Where two sources name one, the one that wins
    names it alone: a flag's drafter is not mixed with a file's. Other options of speculation win one by one.

    Args:
        model: the target, None being the embedded pair.
        values: the fields of ``SpeculativeConfig``.
        config: the JSON object.
        wanted: whether to speculate at all.

    Raises:
        ConfigError: the settings contradict each other, or the JSON is none.
    """
    named = [found for found in (values["method"], values["model"], config) if found.given]
    rank = min((found.source.rank for found in named), default=wanted.source.rank)
    if not wanted.value and (not named or wanted.source.rank <= rank):
        if named and wanted.source.rank == rank:
            by = named[0].source.name
            raise ConfigError(f"{wanted.source.name} contradicts the drafter of {by}\nLeave one of them out.")
        return None
    winning = [found for found in named if found.source.rank == rank]
    tuning = {name: found for name, found in values.items() if found.given and name not in ("method", "model")}
    if not winning:
        return _embedded(model, tuning) if tuning else "auto"
    if config in winning:
        if len(winning) > 1:
            names = " and ".join(found.source.name for found in winning)
            raise ConfigError(f"{names} name two drafters\nGive one of them.")
        weaker = {name: one.value for name, one in tuning.items() if one.source.rank > rank}
        stronger = {name: one.value for name, one in tuning.items() if one.source.rank <= rank}
        return weaker | _parse(config) | stronger
    drafter = {name: values[name].value for name in ("method", "model") if values[name] in winning}
    return {"method": "draft_model", **drafter, **{name: found.value for name, found in tuning.items()}}


def _embedded(model: str | None, tuning: Values) -> Mapping[str, Any]:
    """The embedded draft, tuned."""
    if model is not None:
        name = next(iter(tuning.values())).source.name
        raise ConfigError(f"{name} needs a drafter\nAdd --draft DIR, or --speculative-config JSON.")
    from paceline.engine.pair import EMBEDDED_SPECULATION

    return EMBEDDED_SPECULATION | {name: found.value for name, found in tuning.items()}


def _parse(config: Found) -> dict[str, Any]:
    try:
        values = json.loads(config.value)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        example = '{"method": "ngram", "num_speculative_tokens": 4}'
        raise ConfigError(f"{config.source.name} must be a JSON object, got {config.value!r}\nFor example '{example}'.")
    return values
