"""How drafts are proposed and verified; one file per method and per verifier."""

from paceline.speculation.base import DraftLoader, OwnMemory, Proposer, ProposerNeeds, ProposerTools, proposers
from paceline.speculation.block import BlockProposer
from paceline.speculation.composite import CompositeProposer
from paceline.speculation.draft_model import DraftModelProposer
from paceline.speculation.early_exit import EarlyExitProposer
from paceline.speculation.feature_model import FeatureModelProposer
from paceline.speculation.guard import GuardedProposer
from paceline.speculation.lookahead import LookaheadProposer
from paceline.speculation.medusa import MedusaProposer
from paceline.speculation.ngram import NgramProposer
from paceline.speculation.policy import DraftPolicy, draft_policies
from paceline.speculation.slem import RetokenisedProposer
from paceline.speculation.suffix import SuffixProposer
from paceline.speculation.tli import SharedTokensProposer
from paceline.speculation.token_recycling import TokenRecyclingProposer
from paceline.speculation.verify import Verifier, verifiers

__all__ = [
    "BlockProposer",
    "CompositeProposer",
    "DraftLoader",
    "DraftModelProposer",
    "DraftPolicy",
    "EarlyExitProposer",
    "FeatureModelProposer",
    "GuardedProposer",
    "LookaheadProposer",
    "MedusaProposer",
    "NgramProposer",
    "OwnMemory",
    "Proposer",
    "ProposerNeeds",
    "ProposerTools",
    "RetokenisedProposer",
    "SharedTokensProposer",
    "SuffixProposer",
    "TokenRecyclingProposer",
    "Verifier",
    "draft_policies",
    "proposers",
    "verifiers",
]
