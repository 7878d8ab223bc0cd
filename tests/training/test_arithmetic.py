"""Generated sums are right, and the same for the same seed."""

from __future__ import annotations

import re

from paceline.training.arithmetic import arithmetic_dialogues

RESULTS = {
    "plus": lambda a, b: a + b,
    "minus": lambda a, b: a - b,
    "times": lambda a, b: a * b,
    "divided by": lambda a, b: a / b,
}


def test_every_answer_is_right_and_answers_its_question() -> None:
    for dialogue in arithmetic_dialogues(500, seed=1):
        assert [turn.role for turn in dialogue] == ["user", "assistant"] * (len(dialogue) // 2)
        for question, answer in zip(dialogue[::2], dialogue[1::2], strict=True):
            a, word, b, result = re.fullmatch(r"(\d+) ([a-z ]+) (\d+) is (\d+)\.", answer.text).groups()
            assert RESULTS[word](int(a), int(b)) == int(result)
            assert re.findall(r"\d+", question.text) == [a, b]


def test_the_seed_decides() -> None:
    assert arithmetic_dialogues(20, seed=1) == arithmetic_dialogues(20, seed=1)
    assert arithmetic_dialogues(20, seed=1) != arithmetic_dialogues(20, seed=2)
    assert arithmetic_dialogues(0, seed=1) == []


def test_some_questions_are_asked_in_words() -> None:
    questions = [turn.text for dialogue in arithmetic_dialogues(500, seed=1) for turn in dialogue[::2]]
    assert any(re.fullmatch(r"What is \d+ plus \d+\?", question) for question in questions)
