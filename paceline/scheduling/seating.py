"""Starts and ends requests: seat, cached prefix, sampling state, pages. Does not decide which request runs."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from paceline.cache import CacheManager
from paceline.core.batch import Int32
from paceline.core.request import FinishReason, Request
from paceline.core.seats import Seats
from paceline.sampling import SamplingState
from paceline.scheduling.calls import CallSeats
from paceline.speculation import GuardedProposer

NEVER = 2**31 - 1


class ControlsError(Exception):
    """A request's controls cannot be taken in; ``cause`` is what they raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Seating:
    """The running requests, and per seat how far their sequences may grow."""

    def __init__(
        self,
        *,
        seats: Seats,
        cache: CacheManager,
        sampling: SamplingState,
        proposer: GuardedProposer | None,
        target_groups: Sequence[int],
        calls: CallSeats,
    ) -> None:
        self.calls = calls
        self.seats, self.cache, self.sampling, self.proposer = seats, cache, sampling, proposer
        self.target_groups = list(target_groups)
        self.all_groups = list(range(len(cache.groups)))
        self.draft_groups = self.all_groups[len(self.target_groups) :]
        self.running: list[Request] = []
        self.running_seats: Int32 = np.zeros(0, dtype=np.int32)
        """[running] A new read-only array whenever a request joins or leaves, so that steps may keep the old one."""
        self._any_slides = False
        self.last_slot = np.zeros(seats.capacity, dtype=np.int32)
        """[S] The last slot that a token can have; a draft must not go further."""
        self._full = np.full(seats.capacity, NEVER, dtype=np.int32)
        """[S] known tokens at which the window slides."""

    @property
    def drafts(self) -> bool:
        """Whether there is a drafter that still drafts."""
        return self.proposer is not None and self.proposer.num_nodes(1) > 0

    def groups_of(self, request: Request) -> list[int]:
        """The layer groups that a request needs pages in."""
        return self.all_groups if request.group.speculate and self.drafts else self.target_groups

    def cached(self, seats: Int32) -> Int32:
        return self.cache.groups[self.target_groups[0]].num_cached[seats]

    def num_cached(self, request: Request) -> int:
        return int(self.cache.groups[self.target_groups[0]].num_cached[request.seat])

    def num_pending(self, request: Request) -> int:
        return int(self.seats.num_tokens[request.seat]) - self.num_cached(request)

    def seat(self, request: Request) -> None:
        """Seats a request that starts with the cached prefix of its tokens: its sibling's, or what the index has.

        Raises:
            ControlsError: it has no seat then.
        """
        source = self.sibling(request)
        self.seats.join(request)
        if request.group.seated_at is None:
            request.group.seated_at = time.monotonic()
        try:
            self.sampling.join(request)
        except Exception as error:  # something about its controls
            self.sampling.leave(request.seat)
            self.seats.leave(request)
            raise ControlsError(error) from error
        self.running.append(request)
        self.calls.sit(request)
        self._list_seats()
        self._begin(request, source)

    def leave(self, request: Request) -> None:
        """Takes a request off its seat, and gives back all it held."""
        self._give_back(request)
        self.sampling.leave(request.seat)
        self.seats.leave(request)
        self.running.remove(request)
        self.calls.rise(request)
        self._list_seats()

    def reset(self) -> None:
        """Empties all seats, whatever an exception left half done."""
        self.running.clear()
        self.calls.clear()
        self._list_seats()
        self.seats.clear()
        self.sampling.reset()
        self.cache.reset()
        if self.proposer is not None:
            for seat in range(self.seats.capacity):
                self.proposer.forget(seat)

    def slide(self) -> None:
        """Moves the windows that are full; what is kept will be computed anew, at its new positions."""
        if not self._any_slides:
            return
        seats = self.running_seats
        for seat in seats[self.seats.num_tokens[seats] >= self._full[seats]].tolist():
            request = self.seats.at(seat)
            self._give_back(request)
            request.slide()
            self.seats.refill(seat)
            self._begin(request, None)

    def sibling(self, request: Request) -> Request | None:
        """A running member of the same group whose prompt pages this one could share."""
        if not self.cache.kind.retains or not self.num_shared(request) or self._needs_prompt_rows(request):
            return None
        members = (member for member in request.group.members if member.seat >= 0 and member is not request)
        return next((member for member in members if member.num_dropped == request.num_dropped), None)

    def num_shared(self, request: Request) -> int:
        """Tokens that members of a group share: the prompt's in the window, but for one that each computes itself."""
        return max(0, len(request.prompt_token_ids) - request.num_dropped - 1)

    def publish(self, request: Request) -> None:
        """Offers a seated request's full pages to the prefix index."""
        seat = request.seat
        known = self.seats.tokens[seat, : self.seats.num_tokens[seat]]
        self.cache.publish_prefix(seat, known, request.group.prefix_salt)

    def count_lookup(self, request: Request) -> None:
        """Counts what a request that has begun found in the index: once, not again when it comes back or slides."""
        if not request.counted:
            request.counted = True
            self.cache.count_prefix(request.num_looked_up, request.num_cached_tokens)

    def _begin(self, request: Request, source: Request | None) -> None:
        """Starts a seat that has nothing cached."""
        seat, context = request.seat, request.group.sliding_context
        self._full[seat] = NEVER if context is None else context
        # The last token's logits lie this side of max_new_tokens: a draft that goes further cannot be used. Nor can
        # one that goes past a full window, as what comes next sees less.
        end = int(self.seats.prompt_len[seat]) + request.max_new_tokens
        self.last_slot[seat] = min(end, int(self._full[seat])) - 1
        self._share_prefix(request, source)

    def _share_prefix(self, request: Request, source: Request | None) -> None:
        """Starts a fresh seat with what others have cached of its tokens; at least one is left to compute."""
        seat, shared, groups = request.seat, self.num_shared(request), self.groups_of(request)
        if source is not None and self.cache.can_fork(source.seat, shared, groups):
            self.cache.fork(source.seat, seat, shared, groups)
        elif not self._needs_prompt_rows(request):
            known = self.seats.tokens[seat, : self.seats.num_tokens[seat] - 1]
            found = self.cache.attach_prefix(seat, known, request.group.prefix_salt, groups, self.target_groups)
            if not request.output_token_ids:
                request.num_cached_tokens, request.num_looked_up = found, len(known)

    @staticmethod
    def _needs_prompt_rows(request: Request) -> bool:
        """Whether something is made of its prompt's rows that no cache holds, so that they must be computed."""
        logprobs, pooled = request.group.prompt_logprobs, request.group.pooled
        if pooled is not None and pooled.next_row < len(request.prompt_token_ids) - 1:
            return True
        return request.sample_index == 0 and logprobs is not None and None in logprobs[1:]

    def _give_back(self, request: Request) -> None:
        """Empties a seat's caches, the drafter's too."""
        # Only a token sampled from all that is cached proves it finite; NaN must not reach the pages' next owner.
        ended_well = request.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
        if not ended_well and (request.finish_reason is FinishReason.ERROR or self.num_pending(request) != 1):
            self.cache.clear(request.seat)
        else:
            self.publish(request)
            self.cache.release(request.seat)
        if self.proposer is not None:
            self.proposer.forget(request.seat)

    def _list_seats(self) -> None:
        self.running_seats = np.array([request.seat for request in self.running], dtype=np.int32)
        self.running_seats.flags.writeable = False
        self._any_slides = any(request.group.sliding_context is not None for request in self.running)
