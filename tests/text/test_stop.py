"""Stop strings cut exactly and never leak, however the text falls into tokens."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from paceline.core.params import SamplingParams
from paceline.text.detokenizer import Detokenizer
from paceline.text.stop import StopMatcher
from tests.support.tokenizers import byte_level
from tests.text.test_detokenizer import stream

FEW = settings(max_examples=150, deadline=None)
stops = st.lists(st.text("abé", min_size=1, max_size=5), min_size=1, max_size=4)


def cut(text, strings, *, keep):
    """Brute force: the stop string complete first, the longest of those; (text, stop)."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in strings if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if keep else end - len(stop)], stop
    return text, None


@FEW
@given(pieces=st.lists(st.text("abé", max_size=4), max_size=20), strings=stops)
def test_the_matcher_against_brute_force(pieces, strings):
    matcher = StopMatcher(strings)
    seen = ""
    for piece in pieces:
        match = matcher.feed(piece)
        if match is not None:
            assert cut(seen + piece, strings, keep=True) == ((seen + piece)[: len(seen) + match.end], match.stop)
            return
        seen += piece
        longest = max(k for s in strings for k in range(len(s)) if seen.endswith(s[:k]))
        assert matcher.num_pending == longest
    assert cut(seen, strings, keep=True) == (seen, None)


@FEW
@example(ids=[], strings=["a"], keep=False)
@given(
    ids=st.lists(st.sampled_from(byte_level().encode("ab é aé b abab é")), max_size=30),
    strings=stops,
    keep=st.booleans(),
)
def test_deltas_never_leak(ids, strings, keep):
    tokenizer = byte_level()
    whole = tokenizer.decode(ids)
    deltas, detokenizer = stream(tokenizer, ids, stop=strings, include_stop_str_in_output=keep)
    expected, stop = cut(whole, strings, keep=keep)
    if not whole.endswith("\ufffd"):
        assert (detokenizer.text, detokenizer.stop_string) == (expected, stop)
    sent = ""
    for delta in deltas:
        sent += delta
        assert expected.startswith(sent)


@FEW
@given(words=st.lists(st.sampled_from(["a", "b", "é"]), max_size=25), strings=stops, minimum=st.integers(0, 12))
def test_min_tokens(words, strings, minimum):
    """A stop string counts when its last character comes with a token after the first ``minimum``."""
    tokenizer = byte_level()
    groups = [tokenizer.encode(word, add_special_tokens=False) for word in words]
    ids = [token for group in groups for token in group]
    expected, stop, count = "".join(words), None, 0
    for index, group in enumerate(groups):
        count += len(group)
        text = "".join(words[: index + 1])
        found = [s for s in strings if text.endswith(s)]
        if found and count > minimum:
            stop = max(found, key=len)
            expected = text[: len(text) - len(stop)]
            break
    detokenizer = Detokenizer(tokenizer, SamplingParams(stop=strings, min_tokens=minimum, max_tokens=None))
    for token in ids:
        if detokenizer.push(token):
            break
    assert (detokenizer.text, detokenizer.stop_string) == (expected, stop)


def test_nothing_after_the_stop_changes_the_text():
    tokenizer = byte_level()
    detokenizer = Detokenizer(tokenizer, SamplingParams(stop="lo w"))
    for token in tokenizer.encode("hello world, the cat"):
        detokenizer.push(token)
    assert detokenizer.text == "hel"
    assert detokenizer.take_delta(finished=True) == "hel"
    assert detokenizer.take_delta(finished=True) == ""
