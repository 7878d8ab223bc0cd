"""Knows where a stop string ends in text that arrives piece by piece; knows nothing of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class StopMatch:
    """A completed stop string; ``end`` is the index, in the piece just fed, of the character after it."""

    stop: str
    end: int


@lru_cache(64)
def _borders(text: str) -> list[int]:
    """Entry i: length of the longest proper prefix of ``text[:i]`` that is also its suffix (Knuth-Morris-Pratt).

    Kept for the other answers of a call, which may be a thousand; never changed.
    """
    borders = [-1, *([0] * len(text))]
    border = -1
    for end, character in enumerate(text, 1):
        while border >= 0 and text[border] != character:
            border = borders[border]
        border += 1
        borders[end] = border
    return borders


class StopMatcher:
    """Finds the stop string that is complete first, whatever pieces the text comes in.

    The work per character does not depend on how much text went before. Of stop strings complete at the same
    character the longest wins, so that the text is cut where the first of them began.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [(stop, _borders(stop)) for stop in dict.fromkeys(stops)]
        self._states = [0] * len(self._stops)

    @property
    def num_pending(self) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        return max(self._states, default=0)

    def feed(self, piece: str, *, armed: bool = True) -> StopMatch | None:
        """Takes the next piece; returns the first match in it, unless ``armed`` is false.

        Feeding may go on after unarmed matches; after a returned match the matcher is spent.
        """
        for end, character in enumerate(piece, 1):
            found = self._step(character)
            if found is not None and armed:
                return StopMatch(found, end)
        return None

    def _step(self, character: str) -> str | None:
        longest: str | None = None
        for index, (stop, borders) in enumerate(self._stops):
            state = self._states[index]
            while state >= 0 and stop[state] != character:
                state = borders[state]
            state += 1
            if state == len(stop):
                state = borders[state]
                if longest is None or len(stop) > len(longest):
                    longest = stop
            self._states[index] = state
        return longest
