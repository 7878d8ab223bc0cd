"""The pipeline's shortcuts are invisible, broken rows are flagged, and verification replays vLLM's published cases."""

from typing import Any

import numpy as np
import pytest
import torch

from paceline.kernels.philox import Domain
from paceline.sampling.processors.penalties import Penalties
from paceline.sampling.samplers import in_native, in_torch
from paceline.sampling.scores import BANNED, best_tokens
from tests.support.seating import VOCAB, Room, chain_rows, make_request, many_rows, random_logits, rows_of

pytestmark = pytest.mark.usefixtures("each_sampler")

SETTINGS = [
    {},
    {"temperature": 0.05},
    {"temperature": 3.0},
    {"top_k": 3},
    {"top_p": 0.5},
    {"min_p": 0.2},
    {"allowed_token_ids": [5, 17, 800]},
]


@pytest.mark.parametrize("scale", [0.0, 1.0, 8.0, 200.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("controls", SETTINGS, ids=lambda controls: "-".join(controls) or "none")
def test_pruned_noise_chooses_the_same_tokens(monkeypatch, controls, dtype, scale):
    room = Room(vocab=1000)
    request = room.join(**controls)
    logits, rows = random_logits(40, vocab=1000, dtype=dtype, scale=scale), many_rows(request, 40)
    expected = best_tokens(room.pipeline.perturbed(logits, rows)).tolist()
    assert room.pipeline.sample(logits, rows).tolist() == expected
    monkeypatch.setattr("paceline.sampling.noise.POINTWISE_COST", 0)
    monkeypatch.setattr("paceline.sampling.noise.POINTWISE_START", 0)
    assert room.pipeline.sample(logits, rows).tolist() == expected


def test_pruning_spares_most_of_the_vocabulary(monkeypatch):
    room = Room(vocab=1000)
    request = room.join(top_k=3)
    monkeypatch.setattr("paceline.sampling.noise.gumbel_rows", None)
    assert (room.pipeline.sample(random_logits(40, vocab=1000), many_rows(request, 40)) >= 0).all()


def test_greedy_rows_draw_no_noise_and_copy_nothing(monkeypatch):
    room = Room()
    request = room.join(temperature=0.0)
    monkeypatch.setattr(in_torch.Noise, "add", None)
    monkeypatch.setattr(in_torch, "processed", None)
    monkeypatch.setattr(in_native, "process", None)
    logits = random_logits(3, dtype=torch.bfloat16)
    assert room.pipeline.sample(logits, many_rows(request, 3)).tolist() == logits.argmax(-1).tolist()


def test_plain_rows_do_not_pay_for_their_neighbours(monkeypatch):
    room = Room()
    plain, busy = room.join(temperature=0.0), room.join(temperature=0.0, frequency_penalty=1.0)
    processed: list[int] = []

    def counted(name: str, rows: int) -> None:
        true = getattr(Penalties, name)

        def counting(self, *given):
            processed.append(len(given[rows]))
            true(self, *given)

        monkeypatch.setattr(Penalties, name, counting)

    counted("apply", 0)
    counted("edit", 1)
    room.pipeline.sample(random_logits(5), rows_of((plain, []), (busy, []), (plain, []), (busy, [1]), (plain, [])))
    assert processed == [2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_first_of_equal_scores_wins_and_nan_rows_are_flagged(temperature):
    room = Room()
    request = room.join(temperature=temperature)
    logits = random_logits(5)
    clean = room.pipeline.sample(logits, many_rows(request, 5))
    logits[1, 9], logits[3] = torch.nan, -torch.inf
    assert room.pipeline.sample(logits, many_rows(request, 5)).tolist() == [clean[0], -1, clean[2], -1, clean[4]]
    greedy = room.join(temperature=0.0)
    tied = torch.tensor([[0.0, 1.0, 1.0] + [0.0] * (VOCAB - 3)])
    assert room.pipeline.sample(tied, many_rows(greedy, 1)).tolist() == [1]


EVERY_CONTROL = [
    {"allowed_token_ids": [1, 2, 3]},
    {"allowed_token_ids": [1, 2, 3], "temperature": 0.0},
    {"words": ((9,),)},
    {"logit_bias": {9: -100.0}},
    {"repetition_penalty": 2.0},
    {"presence_penalty": 1.0},
    {"temperature": 0.5},
    {"min_p": 0.1},
    {"top_k": 1},
    {"top_k": 4},
    {"top_p": 0.5},
    {"top_k": 4, "top_p": 0.5, "min_p": 0.1, "temperature": 2.0},
]


@pytest.mark.parametrize("controls", EVERY_CONTROL, ids=str)
def test_nan_does_not_hide_behind_a_control(controls):
    room = Room()
    request, plain = room.join(**controls), room.join(seed=3)
    logits, rows = random_logits(4), rows_of((request, []), (plain, []), (request, [1]), (plain, [1]))
    clean = room.pipeline.sample(logits, rows)
    logits[0, 9] = torch.nan
    assert room.pipeline.sample(logits, rows).tolist() == [-1, *clean[1:]]


def test_everything_banned_is_flagged():
    room = Room()
    request = room.join(allowed_token_ids=[3], words=((3,),), top_p=0.5, top_k=2, min_p=0.5, temperature=0.5)
    assert room.pipeline.sample(random_logits(2), many_rows(request, 2)).tolist() == [BANNED, BANNED]
    assert (room.pipeline.scores(random_logits(1), many_rows(request, 1)) == -torch.inf).all()


def test_no_rows():
    room = Room()
    nothing = rows_of()
    assert room.pipeline.sample(torch.zeros(0, VOCAB), nothing).tolist() == []
    assert room.pipeline.scores(torch.zeros(0, VOCAB), nothing).shape == (0, VOCAB)


def test_read_only_arrays_are_taken():
    room = Room()
    request = room.join(top_k=3, presence_penalty=1.0)
    rows = many_rows(request, 3)
    for array in (rows.seats, rows.output_index, rows.path):
        array.flags.writeable = False
    assert len(room.pipeline.sample(random_logits(3), rows)) == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_ties_go_to_the_lowest_token_of_a_wide_row(dtype):
    room = Room(vocab=5003)
    request = room.join(temperature=0.0)
    logits = random_logits(30, vocab=5003).round().to(dtype)
    expected = np.argmax(logits.double().numpy(), axis=-1).tolist()
    assert room.pipeline.sample(logits, many_rows(request, 30)).tolist() == expected


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-8, 1e4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_extreme_temperatures_choose_tokens(dtype, temperature):
    room = Room()
    request = room.join(temperature=temperature, top_p=0.9)
    logits = random_logits(9, dtype=dtype, scale=50.0)
    tokens = room.pipeline.sample(logits, many_rows(request, 9))
    assert (tokens >= 0).all()
    if temperature < 1e-5:
        assert tokens.tolist() == logits.argmax(-1).tolist()


def test_domains_give_other_noise():
    room = Room()
    request, greedy = room.join(), room.join(temperature=0.0)
    logits, rows = random_logits(2), rows_of((request, []), (greedy, []))
    target, draft = (room.pipeline.perturbed(logits, rows, domain) for domain in (Domain.TARGET, Domain.DRAFT))
    assert (target[0] != draft[0]).all()
    assert torch.equal(target[1], logits[1])
    assert torch.equal(target[0], logits[0] + room.pipeline.noise(rows, Domain.TARGET, logits.dtype)[0])
    assert torch.equal(draft[1], logits[1])


# Verification walks a chain while the draft agrees. The cases are vLLM's, with other tokens.


def verify(room, entries):
    """Per (request, draft, intended tokens): what greedy verification emits, 15 being every row's runner-up."""
    emitted = []
    for request, draft, intended in entries:
        logits = torch.full((len(intended), 100), -100.0)
        logits[:, 15] = 99.0
        logits[torch.arange(len(intended)), torch.tensor(intended)] = 100.0
        emitted.append((room.pipeline.sample(logits, chain_rows(request, draft)).tolist(), draft))
    return [_walk(*entry) for entry in emitted]


def _walk(tokens, draft):
    agreed = next(
        (depth for depth, (ours, theirs) in enumerate(zip(tokens, draft, strict=False)) if ours != theirs), len(draft)
    )
    return tokens[: agreed + 1]


def test_frequency_penalty_counts_drafts_of_the_same_step():
    room = Room(vocab=100)
    penalties, outputs = [1.5, 1.5, 0.7, 0.4], [[2], [3], [4], [6]]
    requests = [
        room.join(make_request(output=output, frequency_penalty=penalty, temperature=0.0))
        for penalty, output in zip(penalties, outputs, strict=True)
    ]
    drafts = [[6, 6, 6], [], [6, 6, 6], [8, 8, 8]]
    intended = [[6] * 4, [7], [6] * 4, [8] * 4]
    found = verify(room, list(zip(requests, drafts, intended, strict=True)))
    assert found == [[6, 15], [7], [6, 6, 15], [8, 8, 8, 15]]


def test_bad_words_apply_to_their_own_request():
    room = Room(vocab=100)
    banned, free, pair = (
        room.join(make_request(temperature=0.0, words=words)) for words in (((22,),), (), ((11, 22),))
    )
    entries = [(banned, [11, 22, 33], [11, 22, 33, 4]), (free, [11, 15, 33], [11, 15, 33, 4])]
    entries += [(pair, [11, 22, 33], [11, 22, 33, 4]), (pair, [22, 22, 33], [22, 22, 33, 4])]
    assert verify(room, entries) == [[11, 15], [11, 15, 33, 4], [11, 15], [22, 22, 33, 4]]


def test_allowed_tokens_apply_to_their_own_request():
    room = Room(vocab=100)
    requests = [
        room.join(
            make_request(temperature=0.0, allowed_token_ids=sorted(set(range(100)) - set(range(start, start + 5))))
        )
        for start in (0, 1, 2)
    ]
    drafts = [[1, 2, 10], [10, 5, 3], [7, 10, 12]]
    entries = [(request, draft, [*draft, 5]) for request, draft in zip(requests, drafts, strict=True)]
    assert verify(room, entries) == [[15], [10, 15], [7, 10, 12, 15]]


def test_a_draft_of_minus_one_is_harmless():
    room = Room(vocab=100)
    request = room.join(make_request(prompt=[50], temperature=0.0, presence_penalty=1.0, repetition_penalty=1.1))
    assert verify(room, [(request, [1, 99, -1], [1, 99, 3, 4])]) == [[1, 99, 3]]


@pytest.mark.parametrize("seed", range(4))
def test_a_draft_changes_no_token(seed):
    """Decoding token by token and verifying chains that are partly wrong give the same text."""
    generator = np.random.default_rng(seed)
    table = torch.from_numpy(generator.normal(size=(VOCAB, VOCAB)) * 2).float()
    controls: dict[str, Any] = {"frequency_penalty": 0.7, "repetition_penalty": 1.2, "top_p": 0.9, "min_tokens": 6}
    controls |= {"max_tokens": None, "words": ((3, 4), (5, 6, 7), (8,))}
    texts = []
    for depth in (0, 1, 3):
        room = Room()
        request = room.join(make_request(seed=seed, **controls))
        while len(request.output_token_ids) < 60:
            draft = generator.integers(0, VOCAB, depth).tolist()
            last = [int(room.seats.tokens[request.seat, request.num_tokens - 1]), *draft]
            tokens = room.pipeline.sample(table[last], chain_rows(request, draft)).tolist()
            room.accept(request, _walk(tokens, draft))
        texts.append(request.output_token_ids[:60])
    assert texts[0] == texts[1] == texts[2]
