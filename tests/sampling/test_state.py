"""A seat carries nothing from one request to the next, and a request that comes back counts what it had."""

import numpy as np
import pytest
import torch

from paceline.core.params import SamplingParams
from paceline.sampling import SamplingState
from paceline.sampling.controls import Controls
from paceline.sampling.processors import processors
from paceline.sampling.processors.bad_words import BadWords
from paceline.sampling.processors.base import Stateless
from paceline.sampling.processors.penalties import Penalties
from tests.sampling.test_distribution import PAIR_THRESHOLD, pair_statistic, sampled
from tests.sampling.test_scores import check_path_is_exact
from tests.support.oracle import processed
from tests.support.seating import VOCAB, Room, chain_rows, make_request, many_rows, random_logits, rows_of

pytestmark = pytest.mark.usefixtures("each_sampler")

EVERYTHING = {
    "temperature": 0.5,
    "top_k": 5,
    "top_p": 0.9,
    "min_p": 0.01,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.5,
    "logit_bias": {3: 1.0},
    "allowed_token_ids": [1, 2, 3, 4, 5],
    "words": ((1,), (2, 3)),
    "min_tokens": 5,
    "stop_token_ids": [4],
}
OTHERS = [
    {},
    {"temperature": 0.0},
    {"frequency_penalty": 1.0},
    {"presence_penalty": 0.1},
    {"repetition_penalty": 1.1},
    {"top_k": 3},
    {"logit_bias": {9: 1.0}},
    {"words": ((4, 5),)},
    {"allowed_token_ids": [7, 8, 9]},
    {"min_tokens": 2, "stop_token_ids": [9]},
]


def everything_kept(state):
    """Every array and every table of the state, as plain values."""
    kept = {name: value.tolist() for name, value in vars(state).items() if isinstance(value, np.ndarray)}
    for part in state.processors:
        tables = {name: value for name, value in vars(part).items() if isinstance(value, dict)}
        kept[type(part).__name__] = {name: sorted(table) for name, table in tables.items()}
    return kept


def check_nothing_remains():
    room = Room()
    fresh = everything_kept(room.state)
    request = room.join(make_request(output=[1, 2], seed=99, sample_index=4, **EVERYTHING))
    room.accept(request, [3, 3])
    assert everything_kept(room.state) != fresh
    room.leave(request)
    assert everything_kept(room.state) == fresh


def test_nothing_remains_after_leave():
    check_nothing_remains()


def test_leaving_empties_every_control_that_joined():
    room = Room()
    request = room.join(make_request(**EVERYTHING))
    assert room.state.active[request.seat].all()


@pytest.mark.parametrize("controls", OTHERS, ids=str)
def test_the_next_request_behaves_as_in_a_fresh_room(controls):
    used, fresh = Room(capacity=1), Room(capacity=1)
    first = used.join(make_request(output=[1, 2, 9, 9], **EVERYTHING))
    used.accept(first, [3, 3])
    used.leave(first)
    results = []
    for room in (used, fresh):
        request = room.join(make_request(prompt=[5], output=[9], **controls))
        rows, logits = chain_rows(request, [4, 4, 9]), random_logits(4)
        results.append((room.pipeline.scores(logits, rows), room.pipeline.sample(logits, rows).tolist()))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_counts_exist_only_where_a_penalty_does():
    room = Room()
    room.join(make_request(temperature=0.5, top_k=3))
    penalised = room.join(make_request(presence_penalty=0.5))
    assert everything_kept(room.state)["Penalties"] == {"_counted": [penalised.seat]}


@pytest.mark.parametrize("repetition_penalty", [1.0, 1.5])
def test_many_seen_tokens_are_counted(repetition_penalty):
    """More than the arrays begin with; known and drafted, in the prompt and not."""
    vocab, generator = 2000, np.random.default_rng(7)
    prompt, output, path = (generator.integers(0, vocab, size).tolist() for size in (400, 700, 90))
    controls = {"frequency_penalty": 0.25, "presence_penalty": -0.5, "repetition_penalty": repetition_penalty}
    room = Room(vocab=vocab)
    room.seats.tokens = np.zeros((8, 2000), dtype=np.int32)
    request = room.join(make_request(prompt=prompt, output=output[:300], **controls))
    room.accept(request, output[300:])
    logits = random_logits(1, vocab=vocab)
    found = room.pipeline.scores(logits, rows_of((request, path)))
    expected, _ = processed(logits[0].tolist(), request.params, prompt, output + path)
    torch.testing.assert_close(found[0], torch.tensor(expected), rtol=0, atol=1e-5)


def test_a_readmitted_request_counts_what_it_had():
    room, logits = Room(), random_logits(1)
    request = room.join(make_request(output=[], **EVERYTHING))
    room.accept(request, [3, 3, 5])
    before = room.pipeline.scores(logits, rows_of((request, [])))
    room.leave(request)
    room.join(make_request(output=[8, 8, 8], frequency_penalty=1.0))
    room.join(request)
    assert torch.equal(room.pipeline.scores(logits, rows_of((request, []))), before)


class OnlyEvenTokens(Stateless):
    """A control of one's own: one class and one line."""

    def join(self, request):
        return request.params.top_k == 7

    def apply(self, scores, rows):
        scores[:, 1::2] = -torch.inf


def test_a_control_of_ones_own_plugs_in(monkeypatch):
    monkeypatch.setattr(processors, "_parts", dict(processors._parts))
    processors.add("even")(OnlyEvenTokens)
    room = Room()
    even, plain = room.join(make_request(top_k=7)), room.join(make_request())
    scores = room.pipeline.scores(random_logits(2), rows_of((even, []), (plain, [])))
    assert (scores[0, 1::2] == -torch.inf).all()
    assert (scores[1] > -torch.inf).all()


# Planted bugs: each check above must be able to fail.

PENALISED = SamplingParams(frequency_penalty=0.5, presence_penalty=0.5, repetition_penalty=1.5)


def test_penalties_that_ignore_the_path_are_caught(monkeypatch):
    seen = Penalties._seen
    check_path_is_exact(PENALISED, [1], [2], [3, 3])
    monkeypatch.setattr(Penalties, "_seen", lambda self, seat, path: seen(self, seat, path[:0]))
    with pytest.raises(AssertionError):
        check_path_is_exact(PENALISED, [1], [2], [3, 3])


def test_penalties_that_see_only_the_last_token_are_caught(monkeypatch):
    seen = Penalties._seen
    monkeypatch.setattr(Penalties, "_seen", lambda self, seat, path: seen(self, seat, path[-1:]))
    with pytest.raises(AssertionError):
        check_path_is_exact(PENALISED, [1], [2], [3, 4])


def test_bad_words_that_ignore_the_path_are_caught(monkeypatch):
    words = ((2, 3, 4),)
    check_path_is_exact(SamplingParams(), [1], [2], [3], words=words)
    history = BadWords._history
    monkeypatch.setattr(BadWords, "_history", lambda self, seat, path: history(self, seat, path[:0]))
    with pytest.raises(AssertionError):
        check_path_is_exact(SamplingParams(), [1], [2], [3], words=words)


def test_a_draft_that_changes_the_counts_is_caught(monkeypatch):
    def leaky(self, seat, path):
        self.commit(seat, path.tolist())
        return self._counted[seat].with_path([])

    monkeypatch.setattr(Penalties, "_seen", leaky)
    with pytest.raises(AssertionError):
        check_path_is_exact(PENALISED, [1], [2], [3, 3])


def test_noise_shared_across_samples_is_caught(monkeypatch):
    fill = Controls.fill

    def shared(self, request):
        fill(self, request)
        self.sample_index[request.seat] = 0

    monkeypatch.setattr(Controls, "fill", shared)
    first, expected = sampled({})
    second, _ = sampled({}, sample_index=1)
    assert pair_statistic(first, second, expected) > PAIR_THRESHOLD


@pytest.mark.parametrize("part", [*SamplingState.__mro__[:2], Penalties, BadWords], ids=lambda part: part.__name__)
def test_a_part_that_does_not_forget_is_caught(monkeypatch, part):
    name = "clear" if part is SamplingState.__mro__[1] else "leave"
    monkeypatch.setattr(part, name, lambda self, seat: None)
    with pytest.raises(AssertionError):
        check_nothing_remains()


def test_a_free_seat_samples_plainly():
    room = Room()
    request = room.join(make_request(seed=0, sample_index=0))
    logits = random_logits(3)
    seated = room.pipeline.sample(logits, many_rows(request, 3))
    room.leave(request)
    request.seat = 0
    assert room.pipeline.sample(logits, many_rows(request, 3)).tolist() == seated.tolist()
    assert room.state.vocab_size == VOCAB
