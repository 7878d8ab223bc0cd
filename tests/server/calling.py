"""Moved to ``tests.support.http_calls``; goes once nobody imports it from here."""

import sys

from tests.support import http_calls

sys.modules[__name__] = http_calls
