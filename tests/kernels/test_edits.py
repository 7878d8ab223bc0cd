"""Controls that change single logits inside the native call choose torch's tokens, and nothing is copied for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paceline.kernels.native.sampling import EDIT, Edits, SampleCall
from paceline.sampling import BANNED
from paceline.sampling.edits import EditList
from paceline.sampling.processors.allowed_token_ids import AllowedTokenIds
from paceline.sampling.processors.bad_words import BadWords
from paceline.sampling.processors.logit_bias import LogitBias
from paceline.sampling.processors.min_tokens import MinTokens
from paceline.sampling.processors.penalties import Penalties
from paceline.sampling.samplers import in_native
from paceline.sampling.scores import take_rows
from tests.kernels.sampling_helpers import all_levels_and_threads, kinds_of_rows, native, one_seat, with_copies
from tests.support.native import LEVELS, needs_library
from tests.support.seating import Room, make_request, many_rows, random_logits, rows_of

at_every_level = pytest.mark.parametrize("level", LEVELS, indirect=True)

EDITING = [
    {"allowed_token_ids": [0, 1, 70, 130, 131], "temperature": 0.0},
    {"words": ((5,), (2, 9), (9, 0))},
    {"min_tokens": 9, "stop_token_ids": [3, 64], "top_k": 5},
    {"logit_bias": {0: 100.0, 63: -100.0, 64: -3.3, 127: 2.7}, "top_p": 0.9},
    {"repetition_penalty": 1.3, "frequency_penalty": -0.7, "presence_penalty": 0.3},
    {"repetition_penalty": 0.6, "temperature": 0.0},
    {"frequency_penalty": 1.9, "min_p": 0.1, "logit_bias": {2: 7.0}},
    {
        "allowed_token_ids": list(range(0, 132, 3)),
        "words": ((6,), (9, 12)),
        "min_tokens": 9,
        "logit_bias": {3: 4.0, 6: 100.0, 12: 0.1, 130: -1.0},
        "repetition_penalty": 1.7,
        "frequency_penalty": 0.4,
        "presence_penalty": -0.6,
        "temperature": 0.8,
        "top_k": 20,
        "top_p": 0.95,
        "min_p": 0.01,
    },
    {},
]
"""Controls that change single logits, one by one and all together."""
EDITORS = (AllowedTokenIds, BadWords, MinTokens, LogitBias, Penalties)


def edited_rows(vocab, seed, kinds=()):
    """A room, logits [N, V] of every kind, and rows with every control, some behind a draft."""
    room = Room(vocab=vocab, capacity=len(EDITING))
    with_copies(room, kinds)
    room.join(
        *(
            make_request(prompt=[1, 0, 8], output=[7, 9, 7, 2], seed=seed * 31 + i, **each)
            for i, each in enumerate(EDITING)
        )
    )
    kinds_of_logits = kinds_of_rows(vocab, seed)
    entries = [
        (room.seats.at(seat), path)
        for seat in range(len(EDITING))
        for path in ([], [9], [0, 9], [131, 131])
        for _ in kinds_of_logits
    ]
    return room, kinds_of_logits.repeat(len(entries) // len(kinds_of_logits), 1), rows_of(*entries)


@at_every_level
@pytest.mark.parametrize("vocab", [132, 192, 1000])
def test_edited_logits_become_the_tokens_of_torch(level, monkeypatch, vocab):
    room, logits, rows = edited_rows(vocab, seed=vocab)
    expected = type(room.pipeline)(room.state, "torch").sample(logits, rows)
    monkeypatch.setattr(in_native, "process", None)  # nothing is copied for torch
    assert (native(room)(logits, rows) == expected).all()
    for dtype in (torch.bfloat16, torch.float16):
        half = logits.to(dtype)
        expected = type(room.pipeline)(room.state, "torch").sample(half, rows)
        assert (native(room)(half, rows) == expected).all()


@needs_library
@pytest.mark.parametrize("kinds", [EDITORS, (Penalties,), (AllowedTokenIds, LogitBias), (BadWords, MinTokens)])
def test_controls_without_edits_compose_with_those_that_have_some(kinds):
    room, logits, rows = edited_rows(300, seed=1, kinds=kinds)
    expected = type(room.pipeline)(room.state, "torch").sample(logits, rows)
    assert (native(room)(logits, rows) == expected).all()


@needs_library
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_edited_rows_do_not_see_levels_threads_or_others(count):
    room, logits, rows = edited_rows(40_000, seed=2)
    chosen = np.random.default_rng(count).permutation(len(rows))[:count]
    alone = [int(native(room)(logits[row : row + 1], take_rows(rows, np.array([row])))[0]) for row in chosen]
    for found in all_levels_and_threads(lambda: native(room)(logits[chosen], take_rows(rows, chosen))):
        assert found.tolist() == alone


@needs_library
@pytest.mark.parametrize("repetition", [0.7, 1.1, 1.3, 1.7])
def test_edits_round_as_torch_does(repetition):
    """Scores of many tokens differ by nothing but the rounding of each operation, in its order."""
    room, vocab = Room(vocab=40), 40
    counts = 1 + torch.arange(vocab) % 6
    output = torch.arange(vocab).repeat_interleave(counts).tolist()
    request = make_request(
        output=output, temperature=0.0, repetition_penalty=repetition, frequency_penalty=0.1, presence_penalty=0.3
    )
    rows = many_rows(room.join(request), 2000)
    steps = counts + torch.randint(20, 22, (2000, vocab), generator=torch.Generator().manual_seed(3))
    logits = steps * (0.1 * repetition)
    expected = type(room.pipeline)(room.state, "torch").sample(logits, rows)
    assert (native(room)(logits, rows) == expected).all()


@needs_library
def test_many_edits():
    """As many as the vocabulary, so that every block is patched."""
    vocab = 250
    room = Room(vocab=vocab)
    penalised = make_request(prompt=list(range(vocab)), repetition_penalty=1.2, logit_bias={5: 1.0}, temperature=0.9)
    rows, logits = many_rows(room.join(penalised), 200), random_logits(200, vocab=vocab, scale=3.0)
    expected = type(room.pipeline)(room.state, "torch").sample(logits, rows)
    assert (native(room)(logits, rows) == expected).all()


@needs_library
@pytest.mark.parametrize("field", ["token", "repetition", "first", "second"])
def test_a_wrong_edit_is_caught(monkeypatch, field):
    """The control test: edits that are a little off would show."""
    room = Room(vocab=200)
    request = make_request(prompt=[4, 5], output=[6, 6, 7], repetition_penalty=1.3, frequency_penalty=0.5)
    rows, logits = many_rows(room.join(request), 400), torch.zeros(400, 200)
    logits[:, 4:8] = random_logits(400, vocab=4) + 6
    expected = type(room.pipeline)(room.state, "torch").sample(logits, rows)
    assert (native(room)(logits, rows) == expected).all()
    true = EditList.collected

    def spoiled(self):
        found = true(self)
        found.edits[field] += 1
        return found

    monkeypatch.setattr(EditList, "collected", spoiled)
    assert (native(room)(logits, rows) != expected).any()


@needs_library
def test_edits_that_do_not_fit_are_refused():
    call, seats, index = SampleCall(one_seat(), 70), np.zeros(2, dtype=np.int32), np.zeros(2, dtype=np.int64)
    start, edits, words = np.array([0, 1, 1]), np.ones(1, dtype=EDIT), np.zeros(2, dtype=np.uint64)
    logits = torch.zeros(2, 70)
    assert call(logits, seats, index, edits=Edits(start, edits, {1: words})).tolist()[1] == BANNED
    beyond, before = edits.copy(), edits.copy()
    beyond["token"], before["token"] = 70, -1
    for bad, message in (
        (Edits(start, beyond, {}), "edits has 70"),
        (Edits(start, before, {}), "edits has -1"),
        (Edits(start[:2], edits, {}), "start must be 3"),
        (Edits(start.astype(np.int32), edits, {}), "start must be 3"),
        (Edits(np.array([0, 1, 2]), edits, {}), "the 1 edits"),
        (Edits(np.array([0, 2, 1]), edits, {}), "the 1 edits"),
        (Edits(np.array([1, 1, 1]), edits, {}), "the 1 edits"),
        (Edits(start, np.ones(1), {}), "edits must"),
        (Edits(start, edits, {0: words[:1]}), "allowed has"),
        (Edits(start, edits, {0: words.astype(np.int64)}), "allowed has"),
        (Edits(start, edits, {2: words}), "row 2"),
        (Edits(start, edits, {-1: words}), "row -1"),
    ):
        with pytest.raises(ValueError, match=message):
            call(logits, seats, index, edits=bad)
