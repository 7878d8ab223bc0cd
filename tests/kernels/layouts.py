"""Moved to ``tests.support.layouts``; goes once nobody imports it from here."""

import sys

from tests.support import layouts

sys.modules[__name__] = layouts
