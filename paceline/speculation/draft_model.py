"""A small language model drafts a chain of tokens (2211.17192); its K/V live in layer groups of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch

from paceline.core.batch import Drafts, Int32, Int64, SampleRows, Verdict, Works
from paceline.core.config import SpeculativeConfig
from paceline.core.errors import ConfigError
from paceline.core.seats import Seats
from paceline.models import CausalLM
from paceline.runner import ModelRunner, RoundsRunner, Taken, assemble, assemble_chain_end
from paceline.sampling import NAN
from paceline.speculation.base import ProposerTools, proposers

Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Growing:
    """The A works of a round whose chains still grow: what every depth asks of them."""

    number: Int64  # [A] rising numbers among the works drafted for
    seats: Int32  # [A]
    end: Int32  # [A] slot of the chain's first token
    output_index: Int64  # [A] output token that the chain's first one decides
    budget: Int32  # [A] how long the chain may become

    @staticmethod
    def of(works: Works, seats: Seats) -> _Growing:
        return _Growing(np.arange(len(works)), works.seats, works.end, _num_output(works, seats), works.draft_budget)

    def kept(self, chosen: Bool) -> _Growing:
        if chosen.all():
            return self
        return _Growing(
            self.number[chosen], self.seats[chosen], self.end[chosen], self.output_index[chosen], self.budget[chosen]
        )


class DraftModelProposer:
    """Drafts with the target's own controls.

    Without ``needs_probs`` it shares the target's noise, so that both choose alike as often as sharing can make them
    (2408.07978); else it draws with noise of its own, and hands over what it drew from.

    Of a draft of k tokens, k - 1 are forwarded: the last needs no successor. After the verdict the cache therefore
    holds the known tokens and at most k - 1 accepted ones; what is missing is fed in the next round.
    """

    makes_trees = False

    def __init__(self, model: CausalLM) -> None:
        self.model: CausalLM | None = model

    def bind(self, tools: ProposerTools) -> None:
        assert tools.runner is not None
        self.tools, self.runner = tools, tools.runner
        self.groups = [tools.cache.groups[index] for index in tools.groups]
        self._rounds: RoundsRunner | None = None
        self.written = np.zeros(tools.seats.capacity, dtype=np.int32)
        """[S] slots that hold K/V of known or drafted tokens."""

    def num_nodes(self, depth: int) -> int:
        return depth

    def propose(self, works: Works) -> Drafts:
        active = self._active(works)
        mine = _select(works, active)
        drafts = self._chain(mine)
        if drafts is not None:
            return _spread(drafts, active, len(works))
        logits = self._catch_up(mine)
        self.written[mine.seats] = mine.end
        drafting = np.flatnonzero(mine.draft_budget > 0)
        return _spread(self._draft(_select(mine, drafting), logits), active[drafting], len(works))

    def rounds(self, works: Works, target: ModelRunner) -> Taken | None:
        """Drafts and has ``target`` verify, ``1 + works.more_rounds`` times; None where that must be done one by one.

        What is cached then is what ``observe`` finds out from a verdict over all rounds.
        """
        depth = int(works.draft_budget[0])
        cached = self.groups[0].num_cached[works.seats]
        behind = works.more_rounds * (depth + 1)
        if len(self._active(works, behind)) < len(works) or (works.end - cached > 2).any() or works.end.min() < 2:
            return None
        if not all(group.keeps(works.seats, works.end - 2) for group in self.groups):
            return None  # a page has left the window of the last token but one, which is computed again
        if self._rounds is None or self._rounds.target is not target:
            self._rounds = RoundsRunner(self.runner, target, self.tools.pipeline)
        seats = self.tools.seats
        rows = _undrafted_rows(works, seats)
        taken = self._rounds.run(works, rows, depth, 1 + works.more_rounds, seats)
        if taken is not None:
            lacking = 1 + (taken.counts[-1] == depth + 1)  # of the last draft, its last token was not fed
            self.written[works.seats] = works.end + taken.counts.sum(axis=0) - lacking
        return taken

    def _active(self, works: Works, behind: int = 0) -> Int64:
        """Works that speculate and whose draft, and ``behind`` tokens more, stay within this model's own context."""
        assert self.model is not None
        speculate = np.array([request.group.speculate for request in works.requests], dtype=bool)
        fits = works.end + works.draft_budget + behind <= self.model.config.max_position_embeddings
        return np.flatnonzero(speculate & fits)

    def _chain(self, works: Works) -> Drafts | None:
        """The whole drafts in one go, where the runner can do that and everybody drafts; else None."""
        if self.tools.needs_probs or not len(works) or works.draft_budget.min() < 1:
            return None
        behind = self._behind(works)
        if int(behind.num_known.sum()) > self.tools.max_rows:
            return None
        seats, budget = self.tools.seats, works.draft_budget
        batch = assemble(behind, Drafts.empty(len(works)), seats, self.groups, sampled=budget > 0)
        rows = _undrafted_rows(works, seats)
        sampled = self.runner.chain(batch, rows, budget - 1, self.tools.pipeline)
        if sampled is None:
            return None
        counts = self._counts(works, sampled)
        self.written[works.seats] = works.end + np.maximum(counts - 1, 0)
        return Drafts.chains(np.ascontiguousarray(sampled.T, dtype=np.int32), counts)

    def _counts(self, works: Works, sampled: Int64) -> Int32:
        """How much of each chain int64[K, B] is a draft, int32[B]: up to a token that ends its request, or is none.

        It is -1 where not even the first token is good, as in ``_draft``.
        """
        counts = works.draft_budget.copy()
        if sampled.min() < 0:
            self._cut(works, sampled, counts)
        enders = _enders(works)
        if not enders.isdisjoint(chain.from_iterable(sampled.tolist())):
            numbers = np.arange(len(works))
            for depth in reversed(range(len(sampled))):
                ends = _ends(works, numbers, sampled[depth]) & (counts > depth)
                counts[ends] = depth + 1
        return counts

    def _cut(self, works: Works, sampled: Int64, counts: Int32) -> None:
        """Ends chains before what is no token, and unmakes what was fed from the row on that it was sampled from."""
        good = np.logical_and.accumulate(sampled >= 0, axis=0).sum(axis=0)
        for number in np.flatnonzero(good < counts).tolist():
            first, seat = int(good[number]), works.seats[number : number + 1]
            for depth in range(max(first - 1, 0), int(counts[number]) - 1):
                self._take_back(seat, works.end[number : number + 1] + np.int32(depth))
            counts[number] = first or -1
        for group in self.groups:
            group.store.clear_pages([0])  # to which rows without room were written

    def _behind(self, works: Works) -> Works:
        """The known tokens that this cache lacks."""
        start = self.groups[0].num_cached[works.seats]
        return Works(works.requests, works.seats, start, works.end - start, works.draft_budget)

    def _catch_up(self, works: Works) -> torch.Tensor | None:
        """Feeds the known tokens that this cache lacks; logits f[R, V] at the end of the works that will draft."""
        behind = self._behind(works)
        collected: list[torch.Tensor] = []
        pieces = list(_pieces(behind, self.tools.max_rows))
        for part in pieces:
            none = Drafts.empty(len(part))
            batch = assemble(part, none, self.tools.seats, self.groups, sampled=part.draft_budget > 0)
            logits = self.runner.forward(batch).logits
            if len(batch.logit_rows):
                collected.append(logits if part is pieces[-1] else logits.clone())  # the next pass takes their memory
        return torch.cat(collected) if len(collected) > 1 else (collected[0] if collected else None)

    def _draft(self, works: Works, logits: torch.Tensor | None) -> Drafts:
        """Draws a chain per work. The count is -1 where not even the first token is good.

        Then the logits were NaN, and so may be what is cached: the count tells the engine to start this draft anew.
        """
        longest = int(works.draft_budget.max(initial=0))
        tokens = np.zeros((len(works), longest), dtype=np.int32)
        counts = np.zeros(len(works), dtype=np.int32)
        probs = None
        if self.tools.needs_probs and logits is not None:
            probs = logits.new_zeros((*tokens.shape, logits.shape[-1]), dtype=torch.float32)
        growing, enders = _Growing.of(works, self.tools.seats), _enders(works)
        for depth in range(longest):
            assert logits is not None
            sampled = self._sample(growing, tokens[growing.number, :depth], logits, probs)
            drawn = sampled.tolist()
            if min(drawn) < 0:
                self._lose(growing.kept(sampled == NAN), counts, depth)
                growing, sampled = growing.kept(sampled >= 0), sampled[sampled >= 0]
            tokens[growing.number, depth] = sampled
            counts[growing.number] = depth + 1
            # Goes by the tokens before it whether there is another one, as a ratio test needs it.
            goes_on = growing.budget > depth + 1
            if not enders.isdisjoint(drawn):
                goes_on &= ~_ends(works, growing.number, sampled)
            growing = growing.kept(goes_on)
            if not len(growing.number):
                break
            logits = self._forward(growing, tokens[growing.number, depth], depth)
        return Drafts.chains(tokens, counts, probs)

    def _sample(self, growing: _Growing, path: Int32, logits: torch.Tensor, probs: torch.Tensor | None) -> Int64:
        """The next token of each chain, int64[A]; what they were drawn from goes to ``probs`` f[B, K, V]."""
        depth = path.shape[1]
        rows = SampleRows(seats=growing.seats, output_index=growing.output_index + depth, path=path)
        if probs is None:
            return self.tools.pipeline.sample(logits, rows)
        tokens, drawn = self.tools.pipeline.draft(logits, rows)
        probs[torch.from_numpy(growing.number).to(probs.device), depth] = drawn
        return tokens

    def _forward(self, growing: _Growing, tokens: Int32, depth: int) -> torch.Tensor:
        """Feeds one drafted token per request, behind everything written so far."""
        seats, slots = growing.seats, growing.end + np.int32(depth)
        self.written[seats] = slots + 1
        return self.runner.forward(assemble_chain_end(seats, slots, tokens, self.tools.seats, self.groups)).logits

    def _lose(self, lost: _Growing, counts: Int32, depth: int) -> None:
        """Ends chains whose logits at ``depth`` were NaN."""
        if depth == 0:
            counts[lost.number] = -1
        else:
            self._take_back(lost.seats, lost.end + np.int32(depth - 1))

    def _take_back(self, seats: Int32, slots: Int32) -> None:
        """Unmakes the last rows fed, whose logits and hence K/V were NaN: nobody may find them, nor what they leave."""
        if not len(seats):
            return
        self.written[seats] = slots
        for group in self.groups:
            group.move(seats, slots - 1, slots)  # anything finite does

    def observe(self, works: Works, verdict: Verdict) -> None:
        active = self._active(works)
        seats = works.seats[active]
        accepted = np.array([len(verdict.path[number]) for number in active], dtype=np.int32)
        valid = np.minimum(self.written[seats], works.end[active] + accepted)
        self.tools.cache.commit(seats, valid, self.tools.groups)

    def forget(self, seat: int) -> None:
        self.written[seat] = 0


def _num_output(works: Works, seats: Seats) -> Int64:
    """[B] output tokens that are known, hence the index of the next."""
    known: Int64 = (seats.num_tokens[works.seats] - seats.prompt_len[works.seats]).astype(np.int64)
    return known


def _undrafted_rows(works: Works, seats: Seats) -> SampleRows:
    """The rows of last known tokens."""
    return SampleRows(works.seats, _num_output(works, seats), np.zeros((len(works), 0), dtype=np.int32))


def _enders(works: Works) -> set[int]:
    """Every token that would end one of the requests."""
    return set[int]().union(*[request.enders for request in works.requests])


def _ends(works: Works, numbers: Int64, sampled: Int64) -> Bool:
    """Whether each sampled token would end its request, bool[A]: what is drafted behind it can never stand."""
    requests = [works.requests[number] for number in numbers]
    ends = [token in request.enders for request, token in zip(requests, sampled.tolist(), strict=True)]
    return np.array(ends, dtype=np.bool_)


def _spread(drafts: Drafts, places: Int64, num_requests: int) -> Drafts:
    """The drafts of some of a step's requests, put in the ``places`` of these; the others get none."""
    if len(places) == num_requests:
        return drafts
    tokens = np.zeros((num_requests, drafts.width), dtype=np.int32)
    counts = np.zeros(num_requests, dtype=np.int32)
    tokens[places], counts[places] = drafts.tokens, drafts.counts
    if drafts.probs is None:
        return Drafts.chains(tokens, counts)
    probs = drafts.probs.new_zeros((num_requests, *drafts.probs.shape[1:]))
    probs[torch.from_numpy(places).to(probs.device)] = drafts.probs
    return Drafts.chains(tokens, counts, probs)


def _select(works: Works, chosen: Int64) -> Works:
    """The works of the rising numbers ``chosen``."""
    if len(chosen) == len(works):
        return works
    return Works(
        requests=[works.requests[number] for number in chosen],
        seats=works.seats[chosen],
        start=works.start[chosen],
        num_known=works.num_known[chosen],
        draft_budget=works.draft_budget[chosen],
    )


def _pieces(works: Works, max_rows: int) -> Iterator[Works]:
    """Cuts works into passes of at most ``max_rows`` rows; only a work's last piece may draft."""
    if not len(works):
        return
    if int(works.num_known.sum()) <= max_rows:
        yield works
        return
    for number in range(len(works)):
        one = _select(works, np.array([number]))
        for first in range(0, int(one.num_known[0]), max_rows):
            count = min(max_rows, int(one.num_known[0]) - first)
            last = first + count == int(one.num_known[0])
            yield replace(
                one,
                start=one.start + np.int32(first),
                num_known=np.array([count], dtype=np.int32),
                draft_budget=one.draft_budget if last else np.zeros(1, dtype=np.int32),
            )


@proposers.add("draft_model")
def build(config: SpeculativeConfig, target: CausalLM, load: Callable[[str], CausalLM]) -> DraftModelProposer:
    if config.model is None:
        raise ConfigError('the draft_model method needs a draft\nSet speculative_config["model"] to its directory.')
    draft = load(config.model)
    if draft.config.vocab_size != target.config.vocab_size:
        raise ConfigError(
            f"the draft has {draft.config.vocab_size} tokens, the target {target.config.vocab_size}\n"
            f'Set speculative_config["model"] to a draft with {target.config.vocab_size} tokens.'
        )
    return DraftModelProposer(draft)
