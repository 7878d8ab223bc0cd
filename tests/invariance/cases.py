"""Moved to ``tests.support.cases``; goes once nobody imports it from here."""

import sys

from tests.support import cases

sys.modules[__name__] = cases
