"""Which text came from draft tokens, also where text and tokens do not arrive together."""

from __future__ import annotations

from paceline.cli.token_spans import TokenSpans


def test_text_is_cut_where_tokens_end():
    assert TokenSpans().split("a quick fox", ["a", " quick", " fox"], [False, True, False]) == [
        ("a", False),
        (" quick", True),
        (" fox", False),
    ]


def test_text_held_back_keeps_its_author():
    spans = TokenSpans()
    assert spans.split("", ["wait"], [True]) == []
    assert spans.split("wa", [], []) == [("wa", True)]
    assert spans.split("it on", [" on"], [False]) == [("it", True), (" on", False)]


def test_character_of_several_tokens_goes_to_the_last_of_them():
    spans = TokenSpans().split("a🙂b", ["a", "\ufffd", "\ufffd", "b"], [False, False, True, False])
    assert spans == [("a", False), ("🙂", True), ("b", False)]


def test_special_tokens_write_nothing():
    assert TokenSpans().split("a", ["a", "<|end|>"], [True, True]) == [("a", True)]


def test_no_text_is_lost():
    spans = TokenSpans().split("Hello there", [" Hello", " there"], [True, False])
    assert "".join(text for text, _ in spans) == "Hello there"
