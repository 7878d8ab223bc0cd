"""Moved to ``tests.support.waiting``; goes once nobody imports it from here."""

import sys

from tests.support import waiting

sys.modules[__name__] = waiting
