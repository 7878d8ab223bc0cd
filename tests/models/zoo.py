"""Moved to ``tests.support.zoo``; goes once nobody imports it from here."""

import sys

from tests.support import zoo

sys.modules[__name__] = zoo
