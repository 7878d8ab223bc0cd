"""Knows which part of a streamed text came from accepted draft tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

Span = tuple[str, bool]
"""Text, and whether an accepted draft token wrote it."""
_BROKEN = "\ufffd"


class TokenSpans:
    """Splits deltas of text where tokens end.

    Text can come later than its token, while a character or a stop string is incomplete, and some tokens have none.
    So each token's text is looked for in what came: what lies before it belongs to the tokens without text of
    their own before it, and a token that is not found wrote nothing.
    """

    def __init__(self) -> None:
        self._waiting: deque[Span] = deque()
        self._before = False

    def split(self, delta: str, tokens: Sequence[str], drafted: Sequence[bool]) -> list[Span]:
        """The delta in parts, each with its author."""
        self._waiting.extend(zip(tokens, drafted, strict=True))
        spans: list[Span] = []
        while delta and self._waiting:
            token, flag = self._waiting.popleft()
            place = -1 if _BROKEN in token or not token else delta.find(token)
            if place >= 0:
                spans += [(delta[:place], self._before), (token, flag)]
                delta = delta[place + len(token) :]
            elif token.startswith(delta):
                self._waiting.appendleft((token[len(delta) :], flag))
                spans.append((delta, flag))
                delta = ""
            self._before = flag
        return [span for span in (*spans, (delta, self._before)) if span[0]]
