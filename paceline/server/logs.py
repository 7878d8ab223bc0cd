"""Knows where the service's log lines go and what they look like."""

from __future__ import annotations

import logging
import sys
import time


def configure(level: int) -> None:
    """Sends this package's lines to standard error; uvicorn's own are kept for what cannot go on."""
    logger = logging.getLogger("paceline")
    logger.setLevel(level)
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        form = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        form.converter = time.gmtime
        handler.setFormatter(form)
        logger.addHandler(handler)
