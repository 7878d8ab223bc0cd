"""Every draft is as deep as the options say, and as a request has room for."""

from __future__ import annotations

import numpy as np

from paceline.core.batch import Int32
from paceline.speculation.policy.base import draft_policies


@draft_policies.add("fixed")
class FixedDepth:
    """``num_speculative_tokens`` each."""

    def __init__(self, max_depth: int) -> None:
        self.max_depth = max_depth

    def depths(self, seats: Int32, room: Int32) -> Int32:  # noqa: ARG002
        found: Int32 = np.minimum(room, self.max_depth).astype(np.int32)
        return found
