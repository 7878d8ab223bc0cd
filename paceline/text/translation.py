"""Knows a growing sequence of one tokenizer's tokens in another tokenizer's; what is settled does not change again."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers

from paceline.text.failures import failing
from paceline.text.plain_text import LONG
from paceline.text.stream_decoder import BROKEN, StreamDecoder
from paceline.text.tokenizer import Tokenizer
from paceline.text.vocabularies import special_tokens

FULL, KEPT = 256, 64
"""Characters of open text at which tokens are settled, and how many then stay open."""
OVERLAP = 8
"""Settled tokens whose text is encoded again, so that what follows is not taken for the beginning of a text."""
ANCHORS = ("\n", "a", ".")


class Translation:
    """Text of ``source`` tokens, encoded by ``other``.

    Special tokens become those that mean the same, or nothing. A wrong boundary is of no harm but to speed: texts are
    encoded from a few words before their end on, not from their beginning.
    """

    def __init__(self, source: Tokenizer, other: Tokenizer) -> None:
        self._source, self._other = source, other
        self._specials = special_tokens(source, other)
        self.num_source = 0
        """Tokens that were taken in."""
        self._settled = [token for token in other.encode("")[:1] if token == other.bos_token_id]
        self._begun = False
        self._begin_text()

    def _begin_text(self) -> None:
        self._decoder, self._fresh = StreamDecoder(self._source), True
        self._text, self._skipped = "", 0

    @property
    def unfinished(self) -> bool:
        """The last tokens are a part of a character, so that the text lacks them."""
        return bool(self._decoder.pending)

    @property
    def open_text(self) -> str:
        """The last characters of the text."""
        return self._text[-KEPT:]

    def extend(self, tokens: Sequence[int]) -> None:
        """
        Raises:
            InvalidRequestError: one of the tokenizers fails on this text.
        """
        begin = 0
        for place, token in enumerate(tokens):
            if token in self._source.special_ids:
                self._add_text(tokens[begin:place])
                self._add_special(token)
                begin = place + 1
        self._add_text(tokens[begin:])
        self.num_source += len(tokens)

    def take(self) -> tuple[list[int], list[int]]:
        """Settled tokens that were not taken yet, and those behind them, which may still change.

        Raises:
            InvalidRequestError: as ``extend``.
        """
        encoding = self._encoded(self._text)
        behind: list[int] = encoding.ids[self._skipped :]
        if len(self._text) > FULL:
            behind = self._settle(encoding)
        settled, self._settled = self._settled, []
        return settled, behind

    def close(self) -> None:
        """All that was taken is settled, also what might have changed."""
        self._text, self._skipped = "", 0

    def _add_text(self, tokens: Sequence[int]) -> None:
        if not tokens:
            return
        self._begun = True
        if self._fresh and len(tokens) > OVERLAP:  # decoding a prompt at once is much faster
            text = self._source.decode(tokens, skip_special_tokens=False)
            if not text.endswith(BROKEN):
                self._text, self._fresh = text, False
                self._decoder = StreamDecoder(self._source, prompt_token_ids=tokens)
                return
        self._fresh = False
        self._text += "".join([self._decoder.push(token) for token in tokens])

    def _add_special(self, token: int) -> None:
        if self._text:
            self._settled += self._encoded(self._text).ids[self._skipped :]
        meant = self._specials.get(token)
        if meant is not None and (self._begun or self._settled[-1:] != [meant]):
            self._settled.append(meant)
        self._begun = True
        self._begin_text()

    def _settle(self, encoding: tokenizers.Encoding) -> list[int]:
        """Settles all but the last tokens, if these come out alike without the text before them; returns these."""
        text, ids, starts = self._text, encoding.ids, [first for first, _ in encoding.offsets]
        cut = next((place for place, first in enumerate(starts) if first > len(text) - KEPT), len(ids))
        open_ids: list[int] = ids[cut:]
        if cut <= self._skipped + OVERLAP:
            return ids[self._skipped :]
        rest = text[starts[cut - OVERLAP] :]
        again: list[int] = self._encoded(rest).ids
        skipped = len(again) - len(open_ids)
        if skipped < 0 or again[skipped:] != open_ids:
            if len(text) < LONG:
                return ids[self._skipped :]
            rest, skipped, cut, open_ids = "", 0, len(ids), []
        self._settled += ids[self._skipped : cut]
        self._text, self._skipped = rest, skipped
        return open_ids

    def _encoded(self, text: str) -> tokenizers.Encoding:
        return _encoded(self._other, text)


def continue_text(tokenizer: Tokenizer, before: str, text: str) -> list[int]:
    """Tokens of ``text``, which follows ``before``, as far as a token may begin there.

    Raises:
        InvalidRequestError: the tokenizer fails on this text.
    """
    for known in (before, *ANCHORS):
        if known:
            shorter, longer = (_encoded(tokenizer, part).ids for part in (known, known + text))
            if longer[: len(shorter)] == shorter:
                return list(longer[len(shorter) :])
    return list(_encoded(tokenizer, text).ids)


def _encoded(tokenizer: Tokenizer, text: str) -> tokenizers.Encoding:
    """With offsets; other threads go on while a long text is encoded."""
    backend = tokenizer.backend
    try:
        if len(text) <= LONG:
            return backend.encode(text, add_special_tokens=False)
        return backend.encode_batch([text], add_special_tokens=False)[0]
    except BaseException as error:
        raise failing(error, "encode this text", "prompt") from None
