"""The proposer protocol: what a speculation method must offer, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn

from paceline.cache import CacheManager
from paceline.core.batch import Verdict
from paceline.core.config import SpeculativeConfig
from paceline.core.errors import ConfigError
from paceline.core.registry import Registry
from paceline.core.seats import Seats
from paceline.core.step import DraftTrees, StepPlan
from paceline.models import CausalLM, DraftModule, MedusaHeads
from paceline.runner import GraphBuilder, KeptFeatures, ModelRunner
from paceline.sampling import Pipeline
from paceline.text import Tokenizer


@dataclass(frozen=True, slots=True)
class ProposerNeeds:
    """What a speculation method takes of the engine."""

    model: CausalLM | None = None
    """A model whose layers need K/V memory of their own."""
    own_tokens: bool = False
    """The model reads other tokens than the target's: ``ProposerTools.own`` is the memory of its sequences."""
    makes_trees: bool = False
    """Whether a draft may be anything but a chain; a builder can ask whether the verifier ``takes_trees``."""
    features: KeptFeatures | None = None
    """What its stages read of the target, at the slot before each row's. Accepted nodes are then fed again, as known
    tokens, since only now the target's features are there; so are a prompt's tokens once the target has computed it."""
    writer: CausalLM | None = None
    """A further model of the very layers of ``model``, which runs over the same K/V: it has no memory of its own."""
    modules: nn.Module | None = None
    """Heads that read features, and have no layers of their own."""
    shares_target_cache: bool = False
    """Its stages run layers of the target, and read and write the target's K/V."""
    num_best: int = 0
    """How many of the likeliest tokens behind each verified node ``observe`` is told: ``Verdict.best``."""

    @property
    def weights(self) -> nn.Module | None:
        """What takes memory beside the target."""
        return self.modules if self.model is None else self.model


@dataclass(frozen=True, slots=True)
class OwnMemory:
    """Sequences of a drafter's own tokens: rows by the target's seat numbers, and pages that nobody else knows of.

    The proposer keeps both. It learns by ``Proposer.forget`` when a seat is empty.
    """

    seats: Seats
    cache: CacheManager


@dataclass(frozen=True, slots=True)
class ProposerTools:
    """What the engine lends a proposer once memory is laid out."""

    seats: Seats
    cache: CacheManager
    pipeline: Pipeline
    runner: ModelRunner | None
    """Runs the model that the proposer needs; None if it needs none."""
    groups: Sequence[int]
    """The proposer's own layer groups in ``cache``; none where its tokens are its own."""
    max_rows: int
    """Most rows a single forward pass may take."""
    target: ModelRunner
    writer: ModelRunner | None = None
    """Runs ``ProposerNeeds.writer``."""
    needs_probs: bool = False
    """The verifier's: drafts are drawn with noise of their own, and carry what they were drawn from."""
    own: OwnMemory | None = None
    """Where ``ProposerNeeds.own_tokens``."""


class Proposer(Protocol):
    """Drafts token trees for the requests of a step. It never decides what is accepted.

    It offers ``draft`` (``DraftsInGraph``) or ``propose`` (``DraftsOnHost``).
    """

    needs: ProposerNeeds

    def bind(self, tools: ProposerTools) -> None: ...

    def num_nodes(self, depth: int) -> int:
        """Most nodes, hence slots and rows, that a draft of this depth takes."""
        ...

    def observe(self, plan: StepPlan, verdict: Verdict) -> None:
        """Learns which nodes were accepted, after the requests took them and before seats are given back."""
        ...

    def forget(self, seat: int) -> None:
        """Drops everything kept for a seat; its pages are released by the engine."""
        ...


@runtime_checkable
class DraftsInGraph(Protocol):
    """What a proposer with a model offers: the stages of its draft."""

    def draft(self, graph: GraphBuilder, depth: int) -> None:
        """Describes drafts of up to ``depth`` levels; 0 only feeds the known tokens that the model's cache lacks.

        The description is computed at once or recorded, so it must hang on nothing but ``depth``. How deep the draft of
        each request may be is the builder's matter.
        """
        ...


@runtime_checkable
class CopiesOnHost(Protocol):
    """What a proposer with stages offers if it copies where it can: its stages then draft for the other requests."""

    def copies(self, plan: StepPlan) -> DraftTrees:
        """As ``DraftsOnHost.propose``; the same answer however often a step is asked about."""
        ...


@runtime_checkable
class DraftsOnHost(Protocol):
    """What a proposer that looks at tokens offers."""

    def propose(self, plan: StepPlan) -> DraftTrees:
        """One draft per request, no deeper than its budget; budget 0 gets an empty draft.

        Requests whose group does not speculate must be left alone.

        Where ``needs_probs``, whether a draft has a token at some depth may hang on the tokens before it, never on that
        token itself or on a later one: leaving out a token because it came out unlikely changes the distribution.
        Tokens that are certain (``DraftTrees.probs`` is None) may be left out for any reason.
        """
        ...


class DraftLoader(Protocol):
    """Loads what drafts, on the target's device."""

    def __call__(self, name: str) -> CausalLM:
        """A whole model."""
        ...

    def tokenizer(self, name: str | None) -> Tokenizer | None:
        """Of a model; None: the target's. None where there is no tokenizer.json."""
        ...

    def module(self, name: str | None, target: CausalLM) -> DraftModule:
        """A module that reads the target's features; None: the one in the target's own directory."""
        ...

    def heads(self, name: str, target: CausalLM) -> MedusaHeads:
        """Medusa heads."""
        ...


def required_model(config: SpeculativeConfig, what: str) -> str:
    """The directory or Hub id of what drafts.

    Raises:
        ConfigError: the options name none.
    """
    if config.model is None:
        whose = "their" if what.endswith("s") else "its"
        raise ConfigError(
            f'the {config.method} method needs {what}\nSet speculative_config["model"] to {whose} directory.'
        )
    return config.model


ProposerBuilder = Callable[[SpeculativeConfig, CausalLM, DraftLoader], Proposer]
"""(config, target, loader of further models) -> proposer"""

proposers: Registry[ProposerBuilder] = Registry("speculative method")
