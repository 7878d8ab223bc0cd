"""Moved to ``tests.support.seating``; goes once nobody imports it from here."""

import sys

from tests.support import seating

sys.modules[__name__] = seating
