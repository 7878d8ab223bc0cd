"""What every test may count on: Ctrl-C interrupts, also in a run that was started in the background.

A shell has such a run ignore SIGINT, and every process that a test starts and interrupts would inherit that.
"""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
