"""The page about security states the limits that there are."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from paceline.core.service_config import Limits
from paceline.server.doors import PUBLIC_PATHS
from paceline.server.service import CHARACTERS_PER_TOKEN

PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")


def test_every_limit_is_there_with_its_default():
    table = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", PAGE, re.MULTILINE))
    limits = Limits()
    defaults = {item.name: getattr(limits, item.name) for item in fields(Limits)}
    assert table == {name: "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
                     for name, value in defaults.items()}  # fmt: skip


def test_open_paths_and_the_bound_on_texts_are_there():
    assert f"only {' and '.join(f'`{path}`' for path in sorted(PUBLIC_PATHS))} are open" in PAGE
    assert f"{CHARACTERS_PER_TOKEN} characters per token" in PAGE
