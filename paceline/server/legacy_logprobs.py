"""Knows the log-probabilities of ``/v1/completions``: parallel lists, with each token's place in the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paceline.core.outputs import TokenLogprobs
from paceline.server.answers import json_logprob
from paceline.text import StreamDecoder, Tokenizer, token_bytes, token_text


def token_name(tokenizer: Tokenizer, token: int) -> str:
    """The token's text; of a token that is a part of a character, its bytes as OpenAI writes them."""
    spelled = token_bytes(tokenizer, token)
    try:
        spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)
    return token_text(tokenizer, token)


class LegacyLogprobs:
    """One stretch of text (a prompt, or an answer) as its tokens come.

    ``text_offset`` is the place in the choice's text, in characters, where what the token adds begins. Tokens that
    make up one character together share its place; a token that adds no text has the place where text goes on.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special_tokens: bool, after: Sequence[int] = (), start: int = 0
    ) -> None:
        """``after``: the tokens before this stretch; ``start``: the length of the text before it."""
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer, skip_special_tokens=skip_special_tokens, prompt_token_ids=after)
        self._parts: list[str] = []
        self._offset = start

    @property
    def text(self) -> str:
        return "".join(self._parts) + self._decoder.pending

    def part(
        self, token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None], *, end: int | None = None
    ) -> dict[str, Any]:
        """The next tokens' lists; an entry is None for a first token, which nothing predicts.

        ``end`` is where the text ends, if it ends with these tokens: what a stop string cut off has its place there.
        """
        offsets = [self._push(token) for token in token_ids]
        return {
            "tokens": [token_name(self._tokenizer, token) for token in token_ids],
            "token_logprobs": [None if entry is None else json_logprob(entry.logprob) for entry in entries],
            "top_logprobs": [None if entry is None else self._top(entry) for entry in entries],
            "text_offset": offsets if end is None else [min(offset, end) for offset in offsets],
        }

    def _push(self, token: int) -> int:
        before = self._offset
        piece = self._decoder.push(token)
        self._parts.append(piece)
        self._offset += len(piece)
        return before

    def _top(self, entry: TokenLogprobs) -> dict[str, float]:
        """The likeliest tokens, and the token itself; of two that are spelled alike the likelier counts."""
        found: dict[str, float] = {}
        for token, logprob in (*entry.top, (entry.token_id, entry.logprob)):
            found.setdefault(token_name(self._tokenizer, token), json_logprob(logprob))
        return found


def join_parts(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Lists of a prompt and its answer, one after the other."""
    return {name: [item for part in parts for item in part[name]] for name in parts[0]}
