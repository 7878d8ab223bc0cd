"""Rules that decide which draft tokens stand; one file per rule, all lossless."""

from paceline.speculation.verify.base import Verifier, verifiers
from paceline.speculation.verify.block import BlockVerifier
from paceline.speculation.verify.match import MatchVerifier
from paceline.speculation.verify.token import TokenVerifier

__all__ = ["BlockVerifier", "MatchVerifier", "TokenVerifier", "Verifier", "verifiers"]
