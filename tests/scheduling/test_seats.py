"""No call has every seat while another has none, under every policy, however many answers it asks for."""

from __future__ import annotations

from typing import Any

import pytest

from paceline.core.call import CallOptions
from paceline.core.request import Group
from paceline.engine.engine import Engine
from tests.support.calls import answers, assert_idle, begin, finish, random_prompt, seeded
from tests.support.engines import Models

VOCAB = 61
POLICIES = ("fcfs", "priority", "fair")
SEATS = 4
NEAR = {"method": "draft_model", "model": "near", "num_speculative_tokens": 4}


def small(engine: Engine, number: int, **options: Any) -> Group:
    params = seeded(number, max_tokens=6, ignore_eos=True)
    return begin(engine, random_prompt(number, 5, VOCAB), params, options=CallOptions(**options))


def many_answers(engine: Engine) -> list[Group]:
    params = seeded(1, n=9, max_tokens=40, ignore_eos=True)
    return [begin(engine, random_prompt(1, 12, VOCAB), params, options=CallOptions(client="greedy"))]


def best_of(engine: Engine) -> list[Group]:
    params = seeded(1, n=1, best_of=9, max_tokens=40, ignore_eos=True)
    return [begin(engine, random_prompt(1, 12, VOCAB), params, options=CallOptions(client="greedy"))]


def many_prompts(engine: Engine) -> list[Group]:
    params, options = seeded(1, max_tokens=40, ignore_eos=True), CallOptions(client="greedy", part_of="one")
    return [begin(engine, random_prompt(n, 12, VOCAB), params, options=options) for n in range(9)]


def embeddings(engine: Engine) -> list[Group]:
    params, options = seeded(1, max_tokens=1), CallOptions(client="greedy", part_of="one", pooling="mean")
    return [begin(engine, random_prompt(n, 70, VOCAB), params, options=options) for n in range(9)]


LARGE = {"n": many_answers, "best_of": best_of, "prompts": many_prompts, "embeddings": embeddings}


def seats_of(groups: list[Group]) -> int:
    return sum(member.seat >= 0 for group in groups for member in group.members)


@pytest.mark.parametrize("client", ["greedy", "modest"])
@pytest.mark.parametrize("large", LARGE)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_call_without_a_seat_gets_one_at_once(policy: str, large: str, client: str, llama: Models) -> None:
    options: dict[str, Any] = {"scheduling_policy": policy, "max_num_seqs": SEATS}
    plain = llama.engine(**options)
    expected = finish(plain, LARGE[large](plain))
    engine = llama.engine(max_num_batched_tokens=16, **options)
    greedy = LARGE[large](engine)
    while seats_of(greedy) < SEATS and not greedy[0].finished:
        engine.step()
    newcomers = []
    for number in range(SEATS - 1):
        newcomers.append(small(engine, 50 + number, client=client))
        for _ in range(12):  # the prompt of the large call that is being read goes on to its end
            engine.step()
            if newcomers[-1].members[0].seat >= 0:
                break
        assert newcomers[-1].members[0].seat >= 0
    assert not all(group.finished for group in greedy)
    finish(engine, newcomers)
    assert not all(group.finished for group in greedy)
    assert finish(engine, greedy) == expected
    assert_idle(engine)


@pytest.mark.parametrize("speculation", [None, NEAR])
@pytest.mark.parametrize("policy", POLICIES)
def test_alone_a_call_has_every_seat_and_others_see_nothing_of_who_gave_way(
    policy: str, speculation: Any, llama: Models
) -> None:
    plain = llama.engine()
    expected = finish(plain, [*many_answers(plain), *(small(plain, 50 + n) for n in range(3))])
    engine = llama.engine(speculation, scheduling_policy=policy, max_num_seqs=SEATS, block_size=4)
    greedy = many_answers(engine)
    for _ in range(3):
        engine.step()
    assert seats_of(greedy) == SEATS
    newcomers = [small(engine, 50 + n) for n in range(3)]
    assert finish(engine, [*greedy, *newcomers]) == expected
    assert greedy[0].members[0].num_preemptions == 0
    assert_idle(engine)


def test_calls_of_one_answer_keep_their_seats(llama: Models) -> None:
    engine = llama.engine(max_num_seqs=3)
    running = [small(engine, n) for n in range(3)]
    engine.step()
    late = small(engine, 9)
    engine.step()
    assert late.members[0].seat < 0
    finish(engine, [*running, late])
    assert engine.scheduler.num_preemptions == 0


def test_the_call_with_most_seats_gives_way(llama: Models) -> None:
    engine = llama.engine(max_num_seqs=8)
    params = [seeded(n, n=count, max_tokens=40, ignore_eos=True) for n, count in enumerate((6, 2))]
    groups = [begin(engine, random_prompt(n, 4, VOCAB), each) for n, each in enumerate(params)]
    for _ in range(3):
        engine.step()
    assert [seats_of([group]) for group in groups] == [6, 2]
    newcomer = small(engine, 9)
    engine.step()
    assert answers(newcomer)[0]
    assert [seats_of([group]) for group in groups] == [5, 2]
    assert groups[0].members[5].num_preemptions == 1
    finish(engine, [*groups, newcomer])


def test_a_worse_priority_takes_no_seat(llama: Models) -> None:
    engine = llama.engine(scheduling_policy="priority", max_num_seqs=2)
    greedy = begin(engine, random_prompt(1, 4, VOCAB), seeded(1, n=2, max_tokens=30, ignore_eos=True))
    engine.step()
    engine.step()
    worse = small(engine, 2, priority=5)
    equal = small(engine, 3)
    engine.step()
    assert (seats_of([greedy]), seats_of([equal]), seats_of([worse])) == (1, 1, 0)
    while not greedy.members[0].finished:
        assert not worse.members[0].output_token_ids or equal.finished
        engine.step()
    finish(engine, [greedy, worse, equal])
    assert worse.members[0].num_preemptions == 0


def test_a_client_in_debt_takes_no_seat_of_one_that_was_served_less(llama: Models) -> None:
    engine = llama.engine(scheduling_policy="fair", max_num_seqs=2)
    params = seeded(1, max_tokens=90, ignore_eos=True)
    witness = begin(engine, random_prompt(1, 4, VOCAB), params, options=CallOptions(client="new"))
    finish(engine, [small(engine, n, client="debtor") for n in range(8)])
    engine.abort(witness)
    params = seeded(1, n=2, max_tokens=90, ignore_eos=True)
    greedy = begin(engine, random_prompt(1, 4, VOCAB), params, options=CallOptions(client="new"))
    engine.step()
    late, policy = small(engine, 9, client="debtor"), engine.scheduler.policy
    assert policy.rank("debtor") > policy.rank("new")
    waited = 0
    while late.members[0].seat < 0:
        before = policy.rank("debtor") - policy.rank("new")
        engine.step()
        waited += late.members[0].seat < 0
    assert before < 12  # what one step of two answers may cost, and a prompt
    assert waited > 2
    finish(engine, [greedy, late])


def test_pages_too_are_had_of_those_that_can_spare_a_seat(llama: Models) -> None:
    """There are seats enough, and every page is taken."""
    engine = llama.engine(max_num_seqs=12, num_blocks=20, block_size=4)
    greedy = many_answers(engine)
    while engine.cache.counts().free > 1:
        engine.step()
    assert engine.seats.num_free
    newcomer = small(engine, 50)
    engine.step()
    assert answers(newcomer)[0]
    finish(engine, [newcomer])
    assert seats_of(greedy) >= 1
    finish(engine, greedy)
    assert_idle(engine)


def test_the_rest_of_a_call_waits_behind_calls_without_a_seat(llama: Models) -> None:
    """The next seat that falls free goes to a call that has none, though the other came earlier."""
    engine = llama.engine(max_num_seqs=1, enable_prefix_caching=False)
    greedy = many_answers(engine)
    engine.step()
    newcomers = [small(engine, 50 + n) for n in range(3)]
    engine.step()
    assert list(engine.scheduler.waiting)[:3] == [group.members[0] for group in newcomers]
    engine.abort(greedy[0])
    finish(engine, newcomers)
    assert_idle(engine)
