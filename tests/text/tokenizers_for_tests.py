"""Moved to ``tests.support.tokenizers``; goes once nobody imports it from here."""

import sys

from tests.support import tokenizers

sys.modules[__name__] = tokenizers
