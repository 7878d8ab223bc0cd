"""Checks the working directory before anything heavy is loaded."""

from __future__ import annotations

import os

from paceline.core.errors import ConfigError


def check_directory() -> None:
    """Raises ConfigError: the working directory is gone, without which libraries do not even load."""
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError(
            f"the working directory cannot be used ({error.strerror})\nChange to one that exists: cd"
        ) from None
