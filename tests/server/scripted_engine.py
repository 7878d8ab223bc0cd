"""Moved to ``tests.support.scripted_engine``; goes once nobody imports it from here."""

import sys

from tests.support import scripted_engine

sys.modules[__name__] = scripted_engine
