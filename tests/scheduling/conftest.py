"""Engines that follow a script: who runs when hangs on no model's weights."""

from __future__ import annotations

import pytest

from tests.support.engines import Models
from tests.support.executors import scripted_models


@pytest.fixture(scope="session")
def llama() -> Models:
    return scripted_models()
