"""Each policy's promise, kept by whole engines: who starts first, who gives way, and who is never starved."""

from __future__ import annotations

from typing import Any

import pytest

from paceline.core.call import CallOptions
from paceline.core.request import Group
from paceline.engine.engine import Engine
from paceline.engine.input_processor import InputProcessor
from paceline.scheduling.policies.fair import OUTPUT_WEIGHT
from tests.support import proposers
from tests.support.calls import answers, assert_idle, begin, finish, greedy, random_prompt, seeded
from tests.support.engines import Models

VOCAB = 61
SPECULATION: dict[str, Any] = {
    "off": None,
    "near": {"method": "draft_model", "model": "near", "num_speculative_tokens": 4},
    "tree": {"method": "random_tree", "model": "9"},
}
POLICIES = ("fcfs", "priority", "fair")


def call(
    engine: Engine, processor: InputProcessor, number: int, length: int = 12, output: int = 20, **options: Any
) -> Group:
    params = seeded(number, max_tokens=output, ignore_eos=True)
    return begin(
        engine,
        random_prompt(number, length, VOCAB),
        params,
        processor=processor,
        options=CallOptions(**options),
    )


@pytest.mark.parametrize("speculation", SPECULATION)
@pytest.mark.parametrize("policy", POLICIES)
def test_preemption_changes_no_token(policy: str, speculation: str, llama: Models) -> None:
    plain = llama.engine()
    jobs = [(random_prompt(n, 14 + n, VOCAB), seeded(n, max_tokens=16, n=1 + n % 2)) for n in range(4)]
    expected = finish(plain, [begin(plain, *job) for job in jobs])
    for (prompt, _), group in zip(jobs, expected, strict=True):
        proposers.TRUTH.update({(tuple(prompt), index): tokens for index, tokens in enumerate(group)})
    engine = llama.engine(
        SPECULATION[speculation],
        num_blocks=10,
        block_size=4,
        scheduling_policy=policy,
        max_num_batched_tokens=24,
        max_num_seqs=4,
    )
    options = [CallOptions(priority=-n % 3, client=str(n % 2), speculate=n != 3) for n in range(4)]
    groups: list[Group] = []
    for job, option in zip(jobs, options, strict=True):
        groups.append(begin(engine, *job, options=option))
        engine.step()
        engine.step()
    assert finish(engine, groups) == expected
    assert engine.scheduler.num_preemptions > 0
    assert_idle(engine)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("speculation", SPECULATION)
@pytest.mark.parametrize("budget", [1, 2, 3])
def test_a_budget_below_the_number_of_requests_is_shared(
    policy: str, budget: int, speculation: str, llama: Models
) -> None:
    """Of equals, nobody gets two turns before everybody had one."""
    engine = llama.engine(SPECULATION[speculation], max_num_batched_tokens=100, scheduling_policy=policy)
    processor = InputProcessor(engine, None)
    groups = [call(engine, processor, n, length=4, output=8) for n in range(5)]
    while not all(answers(group)[0] for group in groups):
        engine.step()
    engine.scheduler.max_tokens = budget
    served = dict.fromkeys(groups, 0)
    while not any(group.finished for group in groups):
        before = [len(answers(group)[0]) for group in groups]
        engine.step()
        for group, count in zip(groups, before, strict=True):
            served[group] += len(answers(group)[0]) > count
        assert max(served.values()) - min(served.values()) <= 1
    finish(engine, groups)


def test_a_better_priority_takes_the_worst_latest_seat(llama: Models) -> None:
    engine = llama.engine(max_num_seqs=3, scheduling_policy="priority")
    processor = InputProcessor(engine, None)
    running = [call(engine, processor, n, priority=p) for n, p in enumerate((5, 9, 9))]
    for _ in range(3):
        engine.step()
    urgent = call(engine, processor, 7, priority=-1)
    equal = call(engine, processor, 8, priority=9)
    engine.step()
    assert answers(urgent)[0]
    assert [group.members[0].num_preemptions for group in running] == [0, 0, 1]
    assert not answers(equal)[0]
    finish(engine, [*running, urgent, equal])
    assert [group.members[0].num_preemptions for group in running] == [0, 0, 1]
    assert equal.members[0].num_preemptions == 0
    assert_idle(engine)


@pytest.mark.parametrize("speculation", SPECULATION)
def test_a_better_priority_takes_pages(speculation: str, llama: Models) -> None:
    """There are seats, but no pages; the requests that give way are as few as do."""
    engine = llama.engine(SPECULATION[speculation], num_blocks=24, block_size=4, scheduling_policy="priority")
    processor = InputProcessor(engine, None)
    running = [call(engine, processor, n, length=20, priority=n) for n in range(3)]
    for _ in range(8):
        engine.step()
    urgent = call(engine, processor, 7, length=24, priority=-1)
    engine.step()
    assert urgent.members[0].seat >= 0
    preempted = [group.members[0].num_preemptions for group in running]
    assert preempted == sorted(preempted)
    assert sum(preempted) < 3
    finish(engine, [*running, urgent])
    assert urgent.members[0].num_preemptions == 0


def test_nobody_gives_way_in_vain(llama: Models) -> None:
    """All the worse requests together hold too little for the better one: they go on."""
    engine = llama.engine(num_blocks=20, block_size=4, scheduling_policy="priority")
    processor = InputProcessor(engine, None)
    best = call(engine, processor, 1, length=44, output=12, priority=0)
    worst = call(engine, processor, 2, length=4, output=20, priority=9)
    for _ in range(3):
        engine.step()
    middle = call(engine, processor, 3, length=40, output=12, priority=5)
    while not best.finished:
        engine.step()
        assert worst.members[0].num_preemptions == 0
        assert best.finished or middle.members[0].seat < 0
    finish(engine, [best, worst, middle])


def test_fcfs_lets_nobody_overtake(llama: Models) -> None:
    """A request that does not fit yet holds up those behind it, whatever their priority."""
    engine = llama.engine(num_blocks=16, block_size=4)
    processor = InputProcessor(engine, None)
    first = call(engine, processor, 1, length=30, output=20)
    for _ in range(2):
        engine.step()
    large = call(engine, processor, 2, length=40, output=4)
    small = call(engine, processor, 3, length=2, output=2, priority=-9)
    order: list[Group] = []

    def note() -> None:
        order.extend(g for g in (first, large, small) if answers(g)[0] and g not in order)

    finish(engine, [first, large, small], note)
    assert order == [first, large, small]


def _cost_of(groups: list[Group]) -> int:
    outputs = sum(len(member.output_token_ids) for group in groups for member in group.members)
    prompts = sum(len(group.prompt_token_ids) for group in groups if group.members[0].output_token_ids)
    return OUTPUT_WEIGHT * outputs + prompts


def test_a_flood_does_not_starve_another_client(llama: Models) -> None:
    """Two clients always have something waiting, one of them twenty times as much: they are served alike."""
    engine = llama.engine(max_num_seqs=4, scheduling_policy="fair", enable_prefix_caching=False)
    processor = InputProcessor(engine, None)
    flood = [call(engine, processor, n, length=4 + n % 9, output=6 + n % 7, client="flood") for n in range(60)]
    engine.step()
    modest = [call(engine, processor, 100 + n, length=5, output=9, client="modest") for n in range(12)]
    start = _cost_of(flood)
    largest = 4 * max(OUTPUT_WEIGHT * 12 + 12, OUTPUT_WEIGHT * 9 + 5)  # what the four seats may hold
    while any(member.seat < 0 and not member.finished for group in modest for member in group.members):
        engine.step()
        assert abs((_cost_of(flood) - start) - _cost_of(modest)) <= 2 * largest
    assert sum(group.finished for group in flood) < 30
    finish(engine, flood + modest)
    assert_idle(engine)


def test_under_fcfs_the_same_flood_does(llama: Models) -> None:
    """The control: what the fair policy mends is there to be mended."""
    engine = llama.engine(max_num_seqs=4, enable_prefix_caching=False)
    processor = InputProcessor(engine, None)
    flood = [call(engine, processor, n, length=4, output=6, client="flood") for n in range(40)]
    engine.step()
    modest = call(engine, processor, 100, length=5, output=9, client="modest")
    while not answers(modest)[0]:
        engine.step()
    assert sum(group.finished for group in flood) > 30


def test_the_most_served_client_gives_way(llama: Models) -> None:
    engine = llama.engine(num_blocks=14, block_size=4, scheduling_policy="fair", enable_prefix_caching=False)
    processor = InputProcessor(engine, None)
    heavy = [call(engine, processor, n, length=10, output=18, client="heavy") for n in range(2)]
    for _ in range(4):
        engine.step()
    light = call(engine, processor, 5, length=8, output=10, client="light")
    finish(engine, [*heavy, light])
    assert heavy[1].members[0].num_preemptions > 0
    assert light.members[0].num_preemptions == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_everybody_is_served_in_the_end(policy: str, llama: Models) -> None:
    engine = llama.engine(
        SPECULATION["near"], num_blocks=14, block_size=4, max_num_seqs=3, max_num_batched_tokens=5,
        scheduling_policy=policy,
    )  # fmt: skip
    processor = InputProcessor(engine, None)
    groups = [
        call(engine, processor, n, length=3 + 5 * n % 17, output=12, priority=n % 4, client=str(n % 3))
        for n in range(12)
    ]
    finish(engine, groups)
    assert all(len(answers(group)[0]) == 12 for group in groups)
    assert_idle(engine)


def test_one_call_without_speculation_leaves_the_others_a_steady_plan(llama: Models) -> None:
    engine = llama.engine(SPECULATION["near"], block_size=64)
    processor = InputProcessor(engine, None)
    groups = [call(engine, processor, n, length=4, speculate=n != 1) for n in range(3)]
    for _ in range(2):
        engine.step()
    plan = engine.scheduler._plan_steady()
    assert plan is not None
    assert plan.draft_depth.tolist() == [4, 0, 4]
    groups[2].speculate = False  # as the guard does: the next plan follows
    plan = engine.scheduler._plan_steady()
    assert plan is not None
    assert plan.draft_depth.tolist() == [4, 0, 0]
    finish(engine, groups)


def test_a_drafter_that_is_off_takes_no_pages(llama: Models) -> None:
    engine = llama.engine(SPECULATION["near"], block_size=1, enable_prefix_caching=False)
    assert engine.proposer is not None
    engine.proposer.counters.disabled = True
    group = begin(engine, random_prompt(1, 12, VOCAB), greedy(), processor=InputProcessor(engine, None))
    engine.step()
    target, draft = (layers.pages.num_referenced for layers in engine.cache.groups)
    assert target >= 12
    assert draft == 0
    finish(engine, [group])
