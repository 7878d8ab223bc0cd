"""Knows one answer's text while its tokens arrive; knows when a stop string is complete.

``StreamDecoder`` turns tokens into text that will not change; ``Detokenizer`` adds stop strings and deltas. The work
per token does not depend on how many went before.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache

from paceline.core.params import SamplingParams
from paceline.text.stop import StopMatcher
from paceline.text.stream_decoder import StreamDecoder
from paceline.text.tokenizer import Tokenizer


@lru_cache(4)
def _ends(end_token_ids: frozenset[int], stop_token_ids: tuple[int, ...]) -> frozenset[int]:
    """Kept for the other answers of a call: there may be a thousand, with thousands of stop tokens each."""
    return end_token_ids | frozenset(stop_token_ids)


class Detokenizer:
    """Implements ``core.request.TextSink`` for one answer.

    Rules, as in vLLM: a stop string counts only when its last character comes with a token after the first
    ``min_tokens``; a stop token (``params.stop_token_ids``, ``end_token_ids``) that ends the answer adds no text,
    unless ``include_stop_str_in_output``. Of several stop strings the one complete first ends the answer; vLLM takes
    the first of the list, which depends on how the text fell into tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        *,
        prompt_token_ids: Sequence[int] = (),
        end_token_ids: Collection[int] = (),
    ) -> None:
        """``end_token_ids``: the request's end-of-sequence tokens (none with ignore_eos)."""
        self.stop_string: str | None = None
        """The stop string that ended the answer."""
        self._tokenizer, self._params, self._prompt = tokenizer, params, prompt_token_ids
        self._ends = _ends(frozenset(end_token_ids), tuple(params.stop_token_ids))
        self._decoder = StreamDecoder(
            tokenizer, skip_special_tokens=params.skip_special_tokens, prompt_token_ids=prompt_token_ids
        )
        self._matcher = StopMatcher(params.stop) if params.stop else None
        self._num_tokens = 0
        self._safe: list[str] = []
        self._num_taken = 0
        # Text that may be the beginning of a stop string.
        self._held = ""

    @property
    def text(self) -> str:
        """The text so far, as it would be if the answer ended now."""
        return "".join(self._safe) + self._unsafe

    @property
    def _unsafe(self) -> str:
        return "" if self.stop_string is not None else self._held + self._decoder.pending

    def push(self, token: int) -> bool:
        """Takes one token; true if a stop string is now complete. Later tokens change nothing."""
        if self.stop_string is not None or not self._params.detokenize:
            return self.stop_string is not None
        self._num_tokens += 1
        if token in self._ends and self._num_tokens >= self._params.min_tokens and not self._keeps_stop:
            return False
        self._add(self._decoder.push(token))
        return self.stop_string is not None

    def restart(self, tokens: Sequence[int]) -> None:
        """Starts over with ``tokens``, all or the first of those that were pushed; deltas continue where they were."""
        fresh = Detokenizer(self._tokenizer, self._params, prompt_token_ids=self._prompt, end_token_ids=self._ends)
        for token in tokens:
            fresh.push(token)
        taken, text = len("".join(self._safe[: self._num_taken])), "".join(fresh._safe)
        fresh._safe, fresh._num_taken = [text[:taken], text[taken:]], 1
        vars(self).update(vars(fresh))  # as one: whatever interrupts this has it begin again

    def take_delta(self, *, finished: bool) -> str:
        """Text that became safe since the last call; the joined deltas are ``text``.

        Safe text holds no part of an unfinished character and of a stop string. ``finished`` releases the rest.
        """
        parts = self._safe[self._num_taken :]
        self._num_taken = len(self._safe)
        if finished and self._unsafe:
            parts.append(self._unsafe)
            self._safe.append(self._unsafe)
            self._num_taken += 1
            self._held = ""
            self._decoder.drop_pending()
        return "".join(parts)

    @property
    def _keeps_stop(self) -> bool:
        return self._params.include_stop_str_in_output

    def _add(self, piece: str) -> None:
        if self._matcher is None or not piece:
            self._release(piece)
            return
        match = self._matcher.feed(piece, armed=self._num_tokens > self._params.min_tokens)
        text = self._held + piece
        if match is not None:
            end = len(self._held) + match.end
            self.stop_string = match.stop
            self._held = ""
            self._release(text[: end if self._keeps_stop else end - len(match.stop)])
            return
        safe = len(text) if self._keeps_stop else len(text) - self._matcher.num_pending
        self._held = text[safe:]
        self._release(text[:safe])

    def _release(self, text: str) -> None:
        if text:
            self._safe.append(text)
