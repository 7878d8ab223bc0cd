"""The engine options: one list for every command, and the same engine after a round trip through arguments."""

from __future__ import annotations

from dataclasses import fields

import pytest
import typer
from typer.main import get_command

from paceline.cli.engine_options import EngineChoice
from paceline.cli.main import app
from paceline.cli.settings import takes_settings
from paceline.core.config import EngineConfig, SpeculativeConfig
from paceline.core.service_config import Limits, ServiceConfig
from paceline.core.settings import settings_of


def options_of(command: str) -> set[str]:
    return {parameter.name for parameter in get_command(app).commands[command].params}


def test_every_field_is_an_option_that_says_what_it_is():
    for kind in (EngineConfig, SpeculativeConfig, ServiceConfig, Limits):
        settings = settings_of(kind)
        assert set(settings) == {field.name for field in fields(kind)} - {"speculative"}
        assert all(setting.about.help.endswith((".", "...")) for setting in settings.values())


@pytest.mark.parametrize("command", ["serve", "chat", "generate", "demo"])
def test_every_command_has_every_engine_option(command):
    assert set(settings_of(EngineConfig)) | {"model", "draft", "speculative_config", "speculation"} <= options_of(
        command
    )


def test_choice_survives_being_spelled_as_arguments():
    chosen = []

    def command(*, engine: EngineChoice) -> None:
        chosen.append(engine)

    parser = typer.Typer()
    parser.command()(takes_settings(command))
    for choice in (
        EngineChoice(None, "auto", {}),
        EngineChoice("target", None, {"block_size": 4, "enable_prefix_caching": False, "num_blocks": 9}),
        EngineChoice("target", {"method": "draft_model", "model": "draft"}, {"seed": -3, "dtype": "float64"}),
    ):
        get_command(parser).main(choice.arguments(), standalone_mode=False)
        assert chosen.pop() == choice
