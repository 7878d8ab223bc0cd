"""Moved to ``tests.support.native``; goes once nobody imports it from here."""

import sys

from tests.support import native

sys.modules[__name__] = native
