"""Native sampling chooses torch's tokens, at every level, with any number of threads, alone and together."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from paceline.kernels.native import region, structures
from paceline.kernels.native.sampling import SampleCall, SeatControls
from paceline.kernels.native.structures import Code, Matrix
from paceline.kernels.philox import Domain, gumbel_rows
from paceline.sampling import BANNED, NAN, Pipeline
from paceline.sampling.processors.penalties import Penalties
from tests.kernels.sampling_helpers import (
    INFINITY,
    all_levels_and_threads,
    kinds_of_rows,
    native,
    one_seat,
    with_copies,
)
from tests.support.native import LEVELS, needs_library
from tests.support.seating import Room, make_request, many_rows, random_logits, rows_of

at_every_level = pytest.mark.parametrize("level", LEVELS, indirect=True)

CONTROLS = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.3},
    {"temperature": 1e-40},
    {"temperature": 50.0},
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": 900},
    {"top_p": 1e-9},
    {"top_p": 0.9},
    {"top_p": 0.9999999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.7, "top_k": 300, "top_p": 0.4},
    {"allowed_token_ids": [0], "top_p": 0.5},
    {"repetition_penalty": 1.3, "top_k": 7},
    {"temperature": 0.0, "frequency_penalty": 2.0},
]


def seated(vocab, controls=CONTROLS, *, seed=0):
    """A room in which each control has a request, that has put out some tokens."""
    room = Room(vocab=vocab, capacity=len(controls))
    output = [0, vocab // 2, vocab // 2, vocab - 1]
    room.join(
        *(make_request(prompt=[0], output=output, seed=seed * 1009 + i, **each) for i, each in enumerate(controls))
    )
    return room, [room.seats.at(seat) for seat in range(len(controls))]


def check_like_torch(logits, *, controls=CONTROLS, seed=0):
    """Every control with every row of logits, against torch."""
    room, requests = seated(logits.shape[1], controls, seed=seed)
    room.pipeline = type(room.pipeline)(room.state, "torch")
    rows = rows_of(*((request, []) for request in requests for _ in logits))
    repeated = logits.repeat(len(requests), 1)
    found, expected = native(room)(repeated, rows), room.pipeline.sample(repeated, rows)
    assert (found == expected).all(), np.flatnonzero(found != expected)
    return found


@at_every_level
@pytest.mark.parametrize("vocab", [1, 2, 15, 16, 63, 64, 65, 1000, 4099])
def test_tokens_are_those_of_torch(level, vocab):
    check_like_torch(kinds_of_rows(vocab, seed=vocab), seed=vocab)


@needs_library
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_become_the_tokens_of_their_float32(dtype):
    check_like_torch(kinds_of_rows(700, seed=3).to(dtype))


@needs_library
@pytest.mark.parametrize("scale", [0.5, 3.0, 12.0])
def test_large_vocabularies(scale):
    controls = [{}, {"temperature": 0.0}, {"top_k": 50}, {"top_k": 5000, "temperature": 0.7}, {"top_p": 0.9}]
    check_like_torch(random_logits(1, vocab=200_003, seed=5, scale=scale), controls=controls)


@needs_library
def test_many_small_rows_like_torch():
    """A token of a wrong set or a noise of a wrong bit would show in some of so many rows."""
    room = Room(vocab=300)
    logits = random_logits(1, vocab=300, scale=3.0).round(decimals=1)
    for controls in ({"top_p": 0.8}, {"top_k": 20, "temperature": 1.5}, {"min_p": 0.03}, {}):
        rows = many_rows(room.join(**controls), 4000)
        many = logits.expand(4000, -1)
        expected = type(room.pipeline)(room.state, "torch").sample(many, rows)
        assert (native(room)(many, rows) == expected).all()


@at_every_level
@pytest.mark.parametrize("scale", [0.0, 1e-3, 0.1, 1.0, 4.0, 40.0])
def test_nuclei_of_large_vocabularies(level, scale):
    """With bounds on most masses alone, and where these do not tell."""
    vocab = 9001
    controls = [{"top_p": share} for share in (1e-6, 0.1, 0.5, 0.9, 0.99, 0.999999)]
    controls += [{"top_p": 0.9, "top_k": 3000}, {"top_p": 0.9, "min_p": 0.01, "temperature": 0.6}]
    logits = random_logits(8, vocab=vocab, seed=6, scale=scale)
    logits[1, 4000] += 9.0 + 2 * scale
    logits[2], logits[3, ::2] = (logits[2] * 2).round() / 2, -INFINITY
    logits[4, 500:] -= 25.0
    logits[5] = -torch.arange(vocab).div(64, rounding_mode="floor") * scale / 9
    check_like_torch(logits, controls=controls)


@needs_library
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 18])
def test_levels_threads_and_other_rows_change_no_token(count):
    vocab = 40_961  # wide enough for several threads
    controls = [each for each in CONTROLS if "top_p" in each or "top_k" in each or not each]
    room, requests = seated(vocab, controls)
    logits = random_logits(18, vocab=vocab, scale=3.0)
    entries = [(requests[row % len(requests)], []) for row in range(18)]
    alone = [int(native(room)(logits[row : row + 1], rows_of(entries[row]))[0]) for row in range(18)]
    order = np.random.default_rng(count).permutation(18)[:count]
    rows = rows_of(*(entries[row] for row in order))
    for found in all_levels_and_threads(lambda: native(room)(logits[order], rows)):
        assert found.tolist() == [alone[row] for row in order]


@at_every_level
def test_noise_is_that_of_philox(level):
    """Rows whose best sum is the noise's alone show it, token by token."""
    vocab, count = 1000, 3
    room = Room(vocab=vocab)
    request = room.join(seed=-(2**63) + 12345, sample_index=3)
    rows = many_rows(request, count)
    rows.output_index[:] += 2**31
    keys = [torch.from_numpy(part) for part in (room.state.seed[rows.seats], room.state.sample_index[rows.seats])]
    noise = gumbel_rows(*keys, torch.from_numpy(rows.output_index), Domain.TARGET, vocab, dtype=torch.float32)
    for _ in range(200):
        tokens = noise.argmax(-1)
        logits = torch.where(noise == -INFINITY, -INFINITY, 0.0)
        assert (native(room)(logits, rows) == tokens.numpy()).all()
        noise.scatter_(1, tokens[:, None], -INFINITY)


@needs_library
def test_broken_and_banned_rows_are_told_apart():
    room = Room(vocab=100)
    banned = room.join(allowed_token_ids=[3], words=((3,),), temperature=0.5)
    logits = torch.zeros(4, 100)
    logits[1, 50], logits[2] = torch.nan, -INFINITY
    found = native(room)(logits, rows_of(*[(banned, [])] * 4))
    assert found.tolist() == [BANNED, NAN, NAN, BANNED]


@needs_library
@pytest.mark.parametrize("vocab", [2, 5000])
def test_a_nucleus_holds_its_share_to_the_last_unit(vocab):
    """The best token alone is enough up to its exact mass, in units of 2^-40, and not for half a unit more."""
    best, depth = 2**40, float(torch.tensor(0.7))
    total = best + round(math.exp(-depth) * best)
    for wanted, tokens in ((best - 0.5, {0}), (best, {0}), (best + 0.5, {0, vocab - 1})):
        zeros, none = np.zeros(1), np.zeros(1, dtype=np.int64)
        controls = SeatControls(
            np.ones(1), np.array([wanted / total]), zeros, zeros, none, none, none, np.zeros(1, dtype=bool)
        )
        logits = torch.full((64, vocab), -INFINITY)
        logits[:, 0], logits[:, -1] = 0.0, -depth
        found = SampleCall(controls, vocab)(logits, np.zeros(64, dtype=np.int32), np.arange(64))
        assert set(found.tolist()) == tokens, wanted


@needs_library
def test_plans_run_beside_other_ops():
    """Two steps of a chain in one call: the rows of the second are those that the first's tokens name."""
    room, depth = Room(vocab=300), 2
    request, table = room.join(top_k=9), random_logits(300, vocab=300)
    logits = [random_logits(5, vocab=300, seed=1), torch.zeros(5, 300)]
    rows = [many_rows(request, 5), many_rows(request, 5)]
    rows[1].output_index[:] += 1
    call = room.pipeline.native(rows[0]).call
    plans = [call.plan(logits[index], rows[index].seats, rows[index].output_index) for index in range(depth)]
    gather = structures.GatherArgs(
        Matrix.of(table), Matrix.of(logits[1]), plans[0].tokens.ctypes.data, rows=5, size=300, scale=1.0
    )
    region.run([plans[0].step, (Code.GATHER, gather), plans[1].step])
    first = room.pipeline.sample(logits[0], rows[0])
    assert (plans[0].tokens == first).all()
    assert (plans[1].tokens == room.pipeline.sample(table[first], rows[1])).all()


@needs_library
def test_what_looks_at_an_unknown_path_or_needs_torch_is_not_native():
    room = Room()
    plain, penalised = room.join(), room.join(presence_penalty=1.0)
    logits, rows = random_logits(2), rows_of((plain, []), (penalised, [3]))
    assert room.pipeline.native(many_rows(plain, 1), at_once=False) is not None
    assert room.pipeline.native(rows, at_once=False) is None
    found = room.pipeline.native(rows)
    tokens = found.call(logits, rows.seats, rows.output_index, edits=found.edits)
    assert (tokens == room.pipeline.sample(logits, rows)).all()
    with_copies(room, [Penalties])
    assert Pipeline(room.state).native(rows) is None


@needs_library
def test_strided_rows():
    room = Room(vocab=500)
    rows = many_rows(room.join(), 6)
    wide = random_logits(6, vocab=1100)
    expected = native(room)(wide[:, 300:800].clone(), rows)
    assert (native(room)(wide[:, 300:800], rows) == expected).all()
    assert (native(room)(wide.T.contiguous().T[:, 300:800], rows) == expected).all()


@needs_library
def test_what_does_not_fit_is_refused():
    call, seats, index = SampleCall(one_seat(), 8), np.zeros(2, dtype=np.int32), np.zeros(2, dtype=np.int64)
    logits = torch.zeros(2, 8)
    assert len(call(logits, seats, index)) == 2
    for bad, message in ((logits[:1], "logits has shape"), (torch.zeros(2, 9), "logits has shape")):
        with pytest.raises(ValueError, match=message):
            call(bad, seats, index)
    with pytest.raises(TypeError, match="float64"):
        call(logits.double(), seats, index)
    for wrong in (1, -1):
        with pytest.raises(ValueError, match="seats"):
            call(logits, seats + np.int32(wrong), index)
    with pytest.raises(ValueError, match="output_index"):
        call(logits, seats, index[:1])
    for edit in (np.array([0, 2]), np.array([-2, 0])):
        with pytest.raises(ValueError, match="copy has"):
            call(logits, seats, index, copies=logits, copy=edit)
    with pytest.raises(ValueError, match="copy must"):
        call(logits, seats, index, copies=logits, copy=np.zeros(2, dtype=np.int32))
    with pytest.raises(TypeError, match="top_k"):
        SeatControls(*(np.ones(1),) * 8)


@needs_library
@pytest.mark.parametrize(("name", "wrong"), [("top_k", 3), ("top_p", 0.7), ("temperature", 0.71), ("seed", 8)])
def test_a_wrong_control_is_caught(name, wrong):
    """The control test: were the native side to read a number slightly wrong, the comparison would fail."""
    room = Room(vocab=200)
    request = room.join(top_k=4, top_p=0.8, temperature=0.7, seed=7)
    rows, logits = many_rows(request, 300), random_logits(300, vocab=200)
    expected = type(room.pipeline)(room.state, "torch").sample(logits, rows)
    assert (native(room)(logits, rows) == expected).all()
    getattr(room.state, name)[request.seat] = wrong
    assert (native(room)(logits, rows) != expected).any()
