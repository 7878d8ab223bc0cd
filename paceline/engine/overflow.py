"""What becomes of a call that the context cannot hold, by name; knows numbers of tokens, not the tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from paceline.core.errors import InvalidRequestError, out_of_range
from paceline.core.params import INT32_MAX
from paceline.core.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """How many tokens a call brings and wants, and how many there may be."""

    num_prompt: int
    max_tokens: int | None
    """None takes what is left; 0 asks for no answer."""
    min_tokens: int
    context: int
    """Tokens that the model can see at once."""
    longest: int
    """Tokens that the model can see and the cache can hold."""
    needs_whole_prompt: bool
    """Something is made of every prompt token, so that none may leave the window before its turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """How a call is taken in."""

    max_new_tokens: int
    num_truncated_tokens: int = 0
    """Oldest prompt tokens to cut off."""
    sliding_context: int | None = None
    """Window whose older half is dropped when it is full; None if the call fits."""


def longest_is(num_tokens: int) -> str:
    """How every error of a call that is too long begins: client programs know it by OpenAI's words."""
    return f"this model's maximum context length is {num_tokens} tokens"


class ContextOverflow(Protocol):
    """One way to take in a call that may not fit."""

    def admit(self, ask: Ask) -> Admission:
        """Raises InvalidRequestError, naming the field and the number that would do, if it cannot."""
        ...

    def room(self, num_prompt: int, longest: int) -> int:
        """Most tokens of an answer that is given no limit."""
        ...


context_overflows: Registry[ContextOverflow] = Registry("context_overflow")


class RefuseOverflow:
    """A prompt that does not fit is refused; an answer that reaches the end of the context ends there ("length")."""

    def admit(self, ask: Ask) -> Admission:
        room, least = ask.context - ask.num_prompt, 0 if ask.max_tokens == 0 else 1
        if room < least:
            raise InvalidRequestError(
                f"{longest_is(ask.context)}, the prompt has {ask.num_prompt}\n"
                f"Shorten the prompt to at most {ask.context - least} tokens.",
                param="prompt",
                code="context_length_exceeded",
            )
        if ask.max_tokens is None:
            room = self.room(ask.num_prompt, ask.longest)
        if ask.min_tokens > room:
            raise out_of_range("min_tokens", ask.min_tokens, f"at most {room}, what context and cache leave")
        return Admission(max_new_tokens=room if ask.max_tokens is None else min(ask.max_tokens, room))

    def room(self, num_prompt: int, longest: int) -> int:
        return max(1, longest - num_prompt)


class Truncate:
    """Cuts off the oldest prompt tokens, so that the rest and ``max_tokens`` fit: the newest tokens are kept, exactly.

    Nothing is spared, no beginning-of-sequence token and no system message. Without ``max_tokens`` a prompt that fits
    is left whole, and another leaves half of the room to the answer.
    """

    def admit(self, ask: Ask) -> Admission:
        behind = ask.max_tokens
        if behind is None:
            behind = max(ask.min_tokens, self.room(ask.num_prompt, ask.longest))
        keep = ask.longest - behind
        if keep < 1:
            field = "min_tokens" if ask.max_tokens is None else "max_tokens"
            raise InvalidRequestError(
                f"{longest_is(ask.longest)}, {field}={behind} leaves no room for a prompt\n"
                f"Set {field} to at most {ask.longest - 1}.",
                param=field,
                code="context_length_exceeded",
            )
        cut = max(0, ask.num_prompt - keep)
        return replace(ERROR.admit(replace(ask, num_prompt=ask.num_prompt - cut)), num_truncated_tokens=cut)

    def room(self, num_prompt: int, longest: int) -> int:
        return longest - num_prompt if num_prompt < longest else longest - longest // 2


class Slide:
    """A rolling window: when the context is full, all but its newest half is dropped, and the text goes on.

    What is kept is computed anew, at positions from 0 on. What is dropped when depends on the number of tokens alone:
    ``Request.slide`` says how.
    """

    def admit(self, ask: Ask) -> Admission:
        if ask.max_tokens == 0:
            return ERROR.admit(ask)
        if ask.max_tokens is None:
            raise InvalidRequestError(
                'with context_overflow="slide" nothing but max_tokens ends an answer, and it is None\n'
                f"Set max_tokens, for example to {ask.context}.",
                param="max_tokens",
            )
        if ask.needs_whole_prompt and ask.num_prompt >= ask.context:
            raise InvalidRequestError(
                f"{longest_is(ask.context)}, the prompt has {ask.num_prompt}, and prompt_logprobs need all of it\n"
                f"Shorten the prompt to at most {ask.context - 1} tokens.",
                param="prompt_logprobs",
                code="context_length_exceeded",
            )
        slides = ask.num_prompt + ask.max_tokens > ask.context
        return Admission(max_new_tokens=ask.max_tokens, sliding_context=ask.context if slides else None)

    def room(self, num_prompt: int, longest: int) -> int:  # noqa: ARG002
        return INT32_MAX


ERROR = RefuseOverflow()
context_overflows.add("error")(ERROR)
context_overflows.add("truncate")(Truncate())
context_overflows.add("slide")(Slide())
