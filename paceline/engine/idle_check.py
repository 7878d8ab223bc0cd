"""Checks at rest that no page is lost; a fault is logged, and mended by making all books anew."""

from __future__ import annotations

import logging
import time

from paceline.engine.engine import Engine

log = logging.getLogger(__name__)

MAX_SHARE = 0.01
"""Most of the time that checking may take: pools of many pages are checked more rarely."""


class IdleCheck:
    """Checks an engine that has nothing to do."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._not_before = 0.0
        """time.monotonic() of the next check."""

    def run(self) -> None:
        """Checks the cache's books, unless that was done a moment ago."""
        began = time.monotonic()
        if began < self._not_before:
            return
        try:
            self._engine.cache.check()
            held = self._engine.cache.counts().referenced
            assert not held, f"nothing runs, but {held} pages are held"
        except AssertionError as fault:
            self._engine.recover()
            log.error("the books of the KV cache were wrong: %s\nThey were made anew, without cached prefixes", fault)
        ended = time.monotonic()
        self._not_before = ended + (ended - began) / MAX_SHARE
