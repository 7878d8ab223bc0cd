"""Rules that decide which draft tokens stand; one file per rule, all lossless."""

from paceline.speculation.verify.base import Verifier, verifiers
from paceline.speculation.verify.match import MatchVerifier

__all__ = ["MatchVerifier", "Verifier", "verifiers"]
