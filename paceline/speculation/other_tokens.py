"""Drafts chains with a model of another tokenizer: how its sequences follow the texts, and its passes."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from paceline.core.batch import Int32, Int64, Verdict
from paceline.core.config import SpeculativeConfig
from paceline.core.errors import ConfigError
from paceline.core.request import Request
from paceline.core.step import DraftTrees, StepPlan
from paceline.models import CausalLM
from paceline.sampling import NAN
from paceline.speculation.base import DraftLoader, ProposerNeeds, ProposerTools, required_model
from paceline.speculation.own_tokens import OwnTokens
from paceline.text import Tokenizer, Translation

Bool = npt.NDArray[np.bool_]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Follower:
    """How far a request's text has become the draft's tokens."""

    text: Translation
    num_dropped: int
    """Tokens that had left the request's window."""
    failed: bool = False
    """It gets no drafts any more."""


@dataclass(slots=True)
class OwnChains:
    """The drafts of some requests of a step while they grow; B of these, K levels so far."""

    numbers: Int64
    """[B] of these requests, rising."""
    seats: Int32
    depth: Int32
    """How many tokens each may have."""
    own: Int32
    """[B, K] the draft's own tokens."""
    counts: Int32
    """[B]"""


class OtherTokensProposer(ABC):
    """What methods of another tokenizer have in common. A request that cannot be followed is not drafted for."""

    def __init__(self, model: CausalLM, draft: Tokenizer, target: Tokenizer) -> None:
        self.needs = ProposerNeeds(model, own_tokens=True)
        self.draft_tokenizer, self.target_tokenizer = draft, target

    def bind(self, tools: ProposerTools) -> None:
        assert tools.own is not None
        assert tools.runner is not None
        self.tools, self.own = tools, OwnTokens(tools.own, tools.runner)
        self._followers: dict[int, Follower] = {}

    def num_nodes(self, depth: int) -> int:
        return depth

    def observe(self, plan: StepPlan, verdict: Verdict) -> None:  # noqa: B027 (there is nothing to do)
        """Nothing is learned: the next draft begins with what became of the text."""

    def forget(self, seat: int) -> None:
        self._followers.pop(seat, None)
        self.own.forget(seat)

    def propose(self, plan: StepPlan) -> DraftTrees:
        self.own.mend()
        wanted = [
            number
            for number in np.flatnonzero(plan.draft_depth > 0).tolist()
            if plan.requests[number].group.speculate and self._follow(plan.requests[number], int(plan.seats[number]))
        ]
        chains, logits = self._begin(plan, wanted)
        if not len(chains.numbers):
            return DraftTrees.empty(len(plan))
        self.start(plan, chains)
        broken = self._grow(plan, chains, logits)
        drafts = self.drafts(plan, chains)
        self.own.keep(chains.seats)
        for seat in broken:
            self._give_up(seat, "the draft returned NaN")
        return drafts

    def _follow(self, request: Request, seat: int) -> bool:
        """Brings the draft's sequence up to the request's; False if there is none now."""
        found = self._followers.get(seat)
        seats = self.tools.seats
        known = int(seats.num_tokens[seat])
        if found is None or found.num_dropped != request.num_dropped or known < found.text.num_source:
            self.forget(seat)
            text = Translation(self.target_tokenizer, self.draft_tokenizer)
            found = self._followers[seat] = Follower(text, request.num_dropped)
        if found.failed:
            return False
        try:
            found.text.extend(seats.tokens[seat, found.text.num_source : known].tolist())
            if not self.own.write(seat, *found.text.take()):
                found.text.close()
        except Exception as error:  # whatever is wrong with its text, the others go on
            self._give_up(seat, f"its text cannot be followed ({type(error).__name__})")
            return False
        return not found.text.unfinished and self.own.room(seat) > 0 and bool(self.own.seats.num_tokens[seat])

    def _give_up(self, seat: int, reason: str) -> None:
        """Of a request that is drafted for no more."""
        log.info("a request is no longer drafted for: %s", reason)
        self._followers[seat].failed = True
        self.own.forget(seat, broken=True)

    def _begin(self, plan: StepPlan, wanted: list[int]) -> tuple[OwnChains, torch.Tensor | None]:
        """Feeds what is known, of one pass's rows at most; the chains of those that are fed whole."""
        rows, numbers, ends = self.tools.max_rows, list[int](), list[int]()
        for number in wanted:
            seat = int(plan.seats[number])
            lacking = self.own.lacking(seat)
            fed, known = min(lacking, rows), int(self.own.seats.num_tokens[seat])
            drafted = min(int(plan.draft_depth[number]), self.own.room(seat)) if fed == lacking else 0
            if fed and self.own.reserve(seat, known - lacking + fed + drafted):
                rows -= fed
                numbers.append(number)
                ends.append(known - lacking + fed)
        if not numbers:
            return _chains(plan, [], self.own), None
        seats, stops = plan.seats[numbers], np.array(ends, dtype=np.int32)
        logits = self.own.feed_known(seats, stops)
        whole = stops == self.own.seats.num_tokens[seats]
        self.own.keep(seats[~whole])
        return _chains(plan, [number for number, fed in zip(numbers, whole, strict=True) if fed], self.own), logits

    def _grow(self, plan: StepPlan, chains: OwnChains, logits: torch.Tensor | None) -> list[int]:
        """Returns the seats whose rows were NaN."""
        going, broken = np.arange(len(chains.numbers)), list[int]()
        for level in range(chains.own.shape[1]):
            assert logits is not None
            own = self.choose(plan, chains, going, level, logits)
            good = own >= 0
            broken += chains.seats[going[own == NAN]].tolist()
            chains.own[going[good], level] = own[good]
            chains.counts[going[good]] = level + 1
            ends = self.ends(plan, chains, going, level)
            going = going[good & ~ends & (chains.depth[going] > level + 1)]
            if not len(going):
                break
            logits = self.own.feed_drafted(chains.seats[going], chains.own[going, : level + 1])
        return broken

    def open_text(self, seat: int) -> str:
        """The last characters of what the request at ``seat`` knows."""
        return self._followers[seat].text.open_text

    def start(self, plan: StepPlan, chains: OwnChains) -> None:  # noqa: B027 (nothing, unless a method needs it)
        """Comes before the first ``choose`` of a step."""

    @abstractmethod
    def choose(self, plan: StepPlan, chains: OwnChains, going: Int64, level: int, logits: torch.Tensor) -> Int64:
        """The draft's own next token of each chain of ``going`` int64[R] by its row of ``logits``; negative: none."""

    @abstractmethod
    def ends(self, plan: StepPlan, chains: OwnChains, going: Int64, level: int) -> Bool:
        """bool[R] whether a chain ends with its token of this level."""

    @abstractmethod
    def drafts(self, plan: StepPlan, chains: OwnChains) -> DraftTrees:
        """What has grown, in the target's tokens."""


def _chains(plan: StepPlan, numbers: list[int], own: OwnTokens) -> OwnChains:
    seats = plan.seats[numbers]
    room = np.array([own.room(seat) for seat in seats.tolist()], dtype=np.int32)
    depth = np.minimum(plan.draft_depth[numbers], room)
    shape = len(numbers), int(depth.max(initial=0))
    return OwnChains(
        np.array(numbers, dtype=np.int64),
        seats,
        depth,
        np.zeros(shape, dtype=np.int32),
        np.zeros(len(numbers), dtype=np.int32),
    )


def load_pair(config: SpeculativeConfig, load: DraftLoader) -> tuple[CausalLM, Tokenizer, Tokenizer]:
    """The draft, its tokenizer and the target's.

    Raises:
        ConfigError: one of them is missing, or trees are asked for.
    """
    name = required_model(config, "a draft")
    if config.draft_top_k > 1:
        raise ConfigError(
            f"the {config.method} method drafts chains, and draft_top_k is {config.draft_top_k}\nSet draft_top_k to 1."
        )
    tokenizers = load.tokenizer(name), load.tokenizer(None)
    for whose, tokenizer in zip(("draft", "target"), tokenizers, strict=True):
        if tokenizer is None:
            raise ConfigError(
                f"the {config.method} method needs both tokenizers, and the {whose} has no tokenizer.json\n"
                "Put the tokenizer's files beside the model, or set method to ngram or suffix."
            )
    draft, target = tokenizers
    assert draft is not None
    assert target is not None
    return load(name), draft, target
