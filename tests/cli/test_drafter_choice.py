"""Which drafter runs when flags, variables and a file each say something: it comes from one of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline.cli.engine_options import EngineChoice, engine_choice
from paceline.cli.settings import SECTIONS
from paceline.core.errors import ConfigError
from paceline.core.resolution import resolve

JSON, NGRAM = '{"method": "draft_model", "model": "json"}', '{"method": "ngram"}'
FILE = '[speculative]\nmodel = "file"\nnum_speculative_tokens = 7'


@pytest.fixture
def choose(tmp_path):
    def choose(file: str = "", variables: dict[str, str] | None = None, **flags: object) -> EngineChoice:
        path = Path(tmp_path / "paceline.toml")
        path.write_text(file)
        environment = {f"PACELINE_{name}": value for name, value in (variables or {}).items()}
        return engine_choice(resolve(SECTIONS, flags=flags, environment=environment, files=[(path, "")]))

    return choose


def drafter(model: str, **tuning: object) -> dict[str, object]:
    return {"method": "draft_model", "model": model, **tuning}


def test_nothing_said_is_auto(choose):
    assert choose().speculative == "auto"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"file": '[speculative]\nmethod = "ngram"'}, {"method": "ngram"}),
        ({"file": '[speculative]\nmethod = "ngram"', "draft": "flag"}, drafter("flag")),
        ({"file": FILE, "draft": "flag"}, drafter("flag", num_speculative_tokens=7)),
        ({"file": FILE, "variables": {"DRAFT": "variable"}}, drafter("variable", num_speculative_tokens=7)),
        ({"file": FILE, "speculative_config": NGRAM}, {"method": "ngram", "num_speculative_tokens": 7}),
        ({"variables": {"SPECULATIVE_CONFIG": JSON}, "draft": "flag"}, drafter("flag")),
        (
            {"variables": {"SPECULATIVE_CONFIG": JSON}, "num_speculative_tokens": 2},
            drafter("json", num_speculative_tokens=2),
        ),
        ({"file": FILE, "variables": {"SPECULATION": "off"}}, None),
        ({"file": "speculation = false", "draft": "flag"}, drafter("flag")),
        ({"file": "speculation = false", "num_speculative_tokens": 2}, None),
        ({"file": "speculation = false", "speculation": True}, "auto"),
    ],
)
def test_the_drafter_of_the_source_that_wins(choose, given, expected):
    assert choose(**given).speculative == expected


def test_the_embedded_draft_is_tuned_where_no_other_is_named(choose):
    tuned = choose(num_speculative_tokens=5).speculative
    assert (tuned["method"], tuned["num_speculative_tokens"]) == ("draft_model", 5)
    assert Path(tuned["model"]).name == "draft"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"variables": {"DRAFT": "a", "SPECULATION": "0"}}, "PACELINE_SPECULATION contradicts the drafter of PACELINE"),
        ({"speculation": False, "draft": "a"}, "--no-speculation contradicts the drafter of --draft"),
        ({"variables": {"DRAFT": "a", "SPECULATIVE_CONFIG": NGRAM}}, "PACELINE_DRAFT and PACELINE_SPECULATIVE_CONFIG"),
        ({"file": "[speculative]\nprompt_lookup_max = 5", "model": "m"}, "prompt_lookup_max needs a drafter"),
        ({"variables": {"SPECULATIVE_CONFIG": "{"}}, "PACELINE_SPECULATIVE_CONFIG must be a JSON object"),
    ],
)
def test_what_one_source_cannot_say_is_named(choose, given, named):
    with pytest.raises(ConfigError) as error:
        choose(**given)
    cause, fix = str(error.value).splitlines()
    assert named in cause
    assert fix
