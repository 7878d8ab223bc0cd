"""What a call asks of the engine besides how its tokens are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from paceline.core.errors import InvalidRequestError, out_of_range


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """Options of one call; whoever adds the call to an engine checks them."""

    speculate: bool = True
    """False decodes plainly, to the same tokens under the verifier "match"."""
    priority: int = 0
    """The policy "priority" serves lower numbers first, as vLLM does."""
    client: str = ""
    """Who calls; the policy "fair" shares the engine between clients."""
    part_of: str = ""
    """The call that several prompts came with, which gives way with all but one seat to calls that have none."""
    context_overflow: str | None = None
    """What becomes of a call that does not fit the context: "error", "truncate" or "slide"; None is the engine's."""
    cache_salt: str = ""
    """Prefixes are shared only between calls with the same salt."""
    pooling: str | None = None
    """How the prompt's hidden states become one embedding ("mean", "last"); None generates text."""
    bad_words_token_ids: tuple[tuple[int, ...], ...] | None = None
    """What ``params.bad_words`` are in tokens, if whoever adds the call has made them already; None leaves it to the
    engine."""


def checked_tokens(prompt: Any, vocab_size: int) -> list[int]:
    """A prompt of token ids as plain integers.

    Raises:
        InvalidRequestError: it is none, or one lies outside the vocabulary.
    """
    if not isinstance(prompt, Sequence) or isinstance(prompt, str | bytes | bytearray):
        raise InvalidRequestError(f"a prompt must be text or token ids, got {type(prompt).__name__}", param="prompt")
    if type(prompt) is list and all(type(token) is int and 0 <= token < vocab_size for token in prompt):
        return list(prompt)  # the usual case, several times faster
    for token in prompt:
        if isinstance(token, bool) or not isinstance(token, Integral) or not 0 <= int(token) < vocab_size:
            raise out_of_range("prompt_token_ids", token, f"integers in [0, {vocab_size - 1}]")
    return [int(token) for token in prompt]
