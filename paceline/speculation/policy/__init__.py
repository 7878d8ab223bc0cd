"""How deep drafts are; one file per policy."""

from paceline.speculation.policy.base import DraftPolicy, draft_policies
from paceline.speculation.policy.fixed import FixedDepth

__all__ = ["DraftPolicy", "FixedDepth", "draft_policies"]
