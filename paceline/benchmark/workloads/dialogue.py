"""Knows how the turns of one dialogue become prompts, each holding what was answered before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from paceline.core.errors import ConfigError
from paceline.text import Tokenizer

TokenIds = Sequence[int]


class Dialogue(Protocol):
    """One or more turns, asked one after the other."""

    @property
    def category(self) -> str: ...

    @property
    def num_turns(self) -> int: ...

    def prompt(self, answers: Sequence[TokenIds]) -> list[int]:
        """The token ids of turn ``len(answers)``, given the answers to the turns before it."""
        ...


@dataclass(frozen=True, slots=True)
class TokenDialogue:
    """Turns of token ids: a prompt is everything so far, one after the other."""

    turns: tuple[tuple[int, ...], ...]
    category: str = "synthetic"

    @property
    def num_turns(self) -> int:
        return len(self.turns)

    def prompt(self, answers: Sequence[TokenIds]) -> list[int]:
        tokens = list(self.turns[0])
        for answer, turn in zip(answers, self.turns[1:], strict=False):
            tokens += [*answer, *turn]
        return tokens


@dataclass(frozen=True, slots=True)
class ChatDialogue:
    """Turns of text, put through the model's chat template."""

    tokenizer: Tokenizer
    turns: tuple[str, ...]
    category: str

    @property
    def num_turns(self) -> int:
        return len(self.turns)

    def prompt(self, answers: Sequence[TokenIds]) -> list[int]:
        messages = [{"role": "user", "content": self.turns[0]}]
        for answer, turn in zip(answers, self.turns[1:], strict=False):
            messages.append({"role": "assistant", "content": self.tokenizer.decode(list(answer))})
            messages.append({"role": "user", "content": turn})
        return self.tokenizer.encode_chat(messages)


def fitted(tokens: TokenIds, length: int) -> list[int]:
    """Exactly ``length`` of the tokens: the last ones, after as many repetitions in front as it takes.

    The end is kept because it is what an answer follows.
    """
    if length < 1 or not tokens:
        raise ConfigError(f"a prompt of {length} tokens cannot be made from one of {len(tokens)}")
    repeated = list(tokens) * -(-length // len(tokens))
    return repeated[-length:]
