"""Knows how to ask and answer small sums in dialogues, so that a small model learns to; seeded."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from paceline.training.data import Document, Turn

PHRASES = (
    "What is {sum}?",
    "How much is {sum}?",
    "What's {sum}?",
    "Calculate {sum}.",
    "Can you tell me what {sum} is?",
)
MAX_QUESTIONS = 3


@dataclass(frozen=True, slots=True)
class ArithmeticOperation:
    word: str
    sign: str
    draw: Callable[[random.Random], tuple[int, int, int]]
    """Two numbers and the result."""


def _plus(source: random.Random) -> tuple[int, int, int]:
    limit = source.choice((9, 99, 99, 999))
    a, b = source.randint(0, limit), source.randint(0, limit)
    return a, b, a + b


def _minus(source: random.Random) -> tuple[int, int, int]:
    a, b, total = _plus(source)
    return total, b, a


def _times(source: random.Random) -> tuple[int, int, int]:
    a, b = source.randint(0, 12), source.randint(0, 12)
    return a, b, a * b


def _divided(source: random.Random) -> tuple[int, int, int]:
    a, b = source.randint(0, 12), source.randint(1, 12)
    return a * b, b, a


# Sums and differences have many more pairs to learn than products, so they come more often.
OPERATIONS = (
    *[ArithmeticOperation("plus", "+", _plus)] * 3,
    *[ArithmeticOperation("minus", "-", _minus)] * 2,
    ArithmeticOperation("times", "*", _times),
    ArithmeticOperation("divided by", "/", _divided),
)


def arithmetic_dialogues(count: int, *, seed: int) -> list[Document]:
    """``count`` dialogues of one to three questions, each answered in a full sentence: "17 plus 25 is 42."."""
    source = random.Random(f"arithmetic {seed}")
    return [_dialogue(source) for _ in range(count)]


def _dialogue(source: random.Random) -> Document:
    turns: list[Turn] = []
    for _ in range(source.randint(1, MAX_QUESTIONS)):
        operation = source.choice(OPERATIONS)
        a, b, result = operation.draw(source)
        written = f"{a} {source.choice((operation.word, operation.sign))} {b}"
        turns.append(Turn("user", source.choice(PHRASES).format(sum=written)))
        turns.append(Turn("assistant", f"{a} {operation.word} {b} is {result}."))
    return tuple(turns)
