"""Moved to ``tests.support.live_service``; goes once nobody imports it from here."""

import sys

from tests.support import live_service

sys.modules[__name__] = live_service
