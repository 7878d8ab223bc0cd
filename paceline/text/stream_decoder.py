"""Knows how to decode tokens one at a time so that what is given out never changes.

A tokenizer's decoder is a function of all tokens at once: a character may lie across tokens, and a space depends on
what went before. So the last few tokens are decoded together and what is new is given out. How much of the window
was given out is counted from its end: then the window may lose tokens at its front, though its first character may
become a broken one there, because UTF-8 is in step again after one character.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence

from paceline.text.failures import failing
from paceline.text.tokenizer import Tokenizer

BROKEN = "\ufffd"
_WINDOW_KEPT = 6
_WINDOW_FULL = 16


class StreamDecoder:
    """Decodes one answer. Where all tokens decode to valid text, the pieces join to the decoder's own text.

    Byte tokens (``<0xE2>``) are decoded here: the library's decoder breaks all characters of a run of byte tokens
    when one byte of it is bad; here only the bad bytes break.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, prompt_token_ids: Sequence[int] = ()
    ) -> None:
        self.pending = ""
        """What would follow if the answer ended now: a broken character, or nothing."""
        self._backend = tokenizer.backend
        self._skipped: Collection[int] = tokenizer.special_ids if skip_special_tokens else ()
        self._byte_tokens = tokenizer.byte_tokens
        # Stands for "some text went before" after bytes: decoders drop a space at the beginning of the text.
        self._byte_context = [token for token, byte in self._byte_tokens.items() if byte == ord("a")]
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._in_bytes = False
        self._window = self._tail_of(prompt_token_ids, tokenizer.special_ids)
        self._text = self._decode()
        # An answer does not complete a character that the prompt left unfinished.
        if self._text.endswith(BROKEN):
            self._window, self._text = [], ""

    def push(self, token: int) -> str:
        """Takes one token; returns the text that is now certain, possibly none."""
        if token in self._byte_tokens:
            return self._push_byte(token)
        if token in self._skipped or not self._backend.id_to_token(token):
            return ""
        return self._end_bytes() + self._push_token(token)

    def _push_token(self, token: int) -> str:
        given = self._text[: len(self._text) - len(self.pending)]
        self._window.append(token)
        self._text = self._decode()
        if not self._text.startswith(given):
            # The new token changed text that was given out, as decoders that clean up do. Begin anew with it.
            given, self._window = "", [token]
            self._text = self._decode()
        # An unfinished character shows as one broken one at the end; what stands before it is certain.
        self.pending = BROKEN if self._text.endswith(BROKEN) else ""
        piece = self._text[len(given) : len(self._text) - len(self.pending)]
        if len(self._window) >= _WINDOW_FULL:
            self._window = self._window[-_WINDOW_KEPT:]
            self._text = self._decode()
        return piece

    def _push_byte(self, token: int) -> str:
        broken = "" if self._in_bytes else self.pending
        piece = self._utf8.decode(bytes([self._byte_tokens[token]]))
        self.pending = BROKEN if self._utf8.getstate()[0] else ""
        if not self._window and not self._in_bytes and not self._decoded([token]):
            piece = ""  # A space at the beginning of the text, which the decoder drops.
        self._in_bytes = True
        return broken + piece

    def _end_bytes(self) -> str:
        if not self._in_bytes:
            return ""
        broken = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        self._in_bytes, self.pending = False, ""
        self._window = list(self._byte_context)
        self._text = self._decode()
        return broken

    def drop_pending(self) -> None:
        """Says that ``pending`` was given out; nothing may be pushed any more."""
        self.pending = ""

    def _tail_of(self, prompt: Sequence[int], special: Collection[int]) -> list[int]:
        """The last tokens of the prompt's last stretch without special tokens: a turn's text begins afresh."""
        tail: list[int] = []
        for token in reversed(prompt[-_WINDOW_KEPT:]):
            if token in special:
                break
            if token in self._byte_tokens:
                return [*self._byte_context, *reversed(tail)]
            tail.append(token)
        return tail[::-1]

    def _decode(self) -> str:
        return self._decoded(self._window)

    def _decoded(self, tokens: list[int]) -> str:
        """Raises InvalidRequestError where the library fails, whose own errors are not all exceptions."""
        try:
            # Skipped tokens never enter the window.
            text: str = self._backend.decode(tokens, skip_special_tokens=False)
        except BaseException as error:
            raise failing(error, "decode these tokens", "prompt") from None
        return text
