"""The proposer protocol: what a speculation method must offer, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from paceline.cache import CacheManager
from paceline.core.batch import Drafts, Verdict, Works
from paceline.core.config import SpeculativeConfig
from paceline.core.registry import Registry
from paceline.core.seats import Seats
from paceline.models import CausalLM
from paceline.runner import ModelRunner, Taken
from paceline.sampling import Pipeline


@dataclass(frozen=True, slots=True)
class ProposerTools:
    """What the engine lends a proposer once memory is laid out."""

    seats: Seats
    cache: CacheManager
    pipeline: Pipeline
    runner: ModelRunner | None
    """Runs ``Proposer.model``; None if the method has no model."""
    groups: Sequence[int]
    """The proposer's own layer groups in ``cache``."""
    max_rows: int
    """Most rows a single forward pass may take."""
    needs_probs: bool = False
    """The verifier's: sample drafts with ``pipeline.draft`` and hand over what they were drawn from."""


class Proposer(Protocol):
    """Drafts token trees for the works of a step. It never decides what is accepted."""

    model: CausalLM | None
    """A model whose layers need K/V memory of their own; None for methods without one."""

    makes_trees: bool
    """Whether a draft may be anything but a chain; a builder can ask whether the verifier ``takes_trees``."""

    def bind(self, tools: ProposerTools) -> None: ...

    def num_nodes(self, depth: int) -> int:
        """Most nodes, hence slots and rows, that a draft of this depth takes."""
        ...

    def propose(self, works: Works) -> Drafts:
        """One draft per work, no deeper than its budget; budget 0 gets an empty draft.

        Works whose group does not speculate must be left alone. Works in mid-prompt (budget 0) are shown so that a
        drafter's own cache can keep up.

        Where ``needs_probs``, whether a draft has a token at some depth may hang on the tokens before it, never on that
        token itself or on a later one: leaving out a token because it came out unlikely changes the distribution.
        Tokens that are certain (``Drafts.probs`` is None) may be left out for any reason.
        """
        ...

    def observe(self, works: Works, verdict: Verdict) -> None:
        """Learns which nodes were accepted, after the requests took them and before seats are given back."""
        ...

    def forget(self, seat: int) -> None:
        """Drops everything kept for a seat; its pages are released by the engine."""
        ...


@runtime_checkable
class DraftsInRounds(Protocol):
    """What a proposer may offer besides: to draft and have drafts verified several times in one call."""

    def rounds(self, works: Works, target: ModelRunner) -> Taken | None:
        """``1 + works.more_rounds`` rounds of drafts of the full budget, which all works have, and their verification.

        A draft's token is negative where the drafter had none. None, and nothing has changed, if that cannot be. The
        slots of all rounds are held, also those that lie past what the drafter itself can take.
        """
        ...


ProposerBuilder = Callable[[SpeculativeConfig, CausalLM, Callable[[str], CausalLM]], Proposer]
"""(config, target, loader of further models) -> proposer"""

proposers: Registry[ProposerBuilder] = Registry("speculative method")
