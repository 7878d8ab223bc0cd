"""Moved to ``tests.support.checkpoints``; goes once nobody imports it from here."""

import sys

from tests.support import checkpoints

sys.modules[__name__] = checkpoints
