"""Moved to ``tests.support.server_process``; goes once nobody imports it from here."""

import sys

from tests.support import server_process

sys.modules[__name__] = server_process
