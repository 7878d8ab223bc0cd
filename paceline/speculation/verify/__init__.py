"""Rules that decide which draft tokens stand; one file per rule, all lossless."""

from paceline.speculation.verify.base import Verifier, verifiers
from paceline.speculation.verify.block import BlockVerifier
from paceline.speculation.verify.match import MatchVerifier
from paceline.speculation.verify.token import TokenVerifier
from paceline.speculation.verify.traversal import TraversalVerifier
from paceline.speculation.verify.tree import TreeVerifier

__all__ = [
    "BlockVerifier",
    "MatchVerifier",
    "TokenVerifier",
    "TraversalVerifier",
    "TreeVerifier",
    "Verifier",
    "verifiers",
]
