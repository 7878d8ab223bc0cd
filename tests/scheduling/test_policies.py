"""What each policy promises about ranks and lanes, without an engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from paceline.core.errors import ConfigError
from paceline.core.params import SamplingParams
from paceline.core.request import Group, Request
from paceline.scheduling import SchedulingPolicy, policies
from paceline.scheduling.calls import CallSeats
from paceline.scheduling.policies.fair import OUTPUT_WEIGHT, PROMPT_WEIGHT, FairShare
from paceline.scheduling.queue import WaitingQueue


def request_of(arrival: float, *, priority: int = 0, client: str = "", prompt: int = 3, index: int = 0) -> Request:
    group = Group(str(arrival), [1] * prompt, SamplingParams(), arrival=arrival, priority=priority, client=client)
    return Request(str(arrival), group, index, 0, frozenset(), 100)


def queue_of(name: str, *requests: Request) -> WaitingQueue:
    policy = policies[name]()
    queue = WaitingQueue(policy, CallSeats())
    for request in requests:
        policy.arrive(request)
        queue.add(request)
    return queue


def drained(queue: WaitingQueue) -> Iterator[Request]:
    while queue:
        first = next(iter(queue))
        queue.remove(first)
        yield first


def test_names() -> None:
    assert sorted(policies) == ["fair", "fcfs", "priority"]
    with pytest.raises(ConfigError, match="Choose one of: fair, fcfs, priority"):
        policies["random"]


def test_fcfs_goes_by_arrival_alone() -> None:
    first, second, third = (request_of(n, priority=-n, client=str(n)) for n in range(3))
    assert list(drained(queue_of("fcfs", third, first, second))) == [first, second, third]


def test_priority_goes_by_number_then_arrival() -> None:
    late, early, best, worst = (request_of(at, priority=p) for at, p in ((9, 1), (2, 1), (8, -5), (1, 7)))
    queue = queue_of("priority", late, early, best, worst)
    assert list(queue) == [best, early, late, worst]
    assert len(queue) == 4
    assert max(queue, key=policies["priority"]().standing) is worst


def test_members_of_a_group_keep_their_order() -> None:
    members = [request_of(1.0, index=n) for n in range(4)]
    for name in policies:
        assert list(queue_of(name, *reversed(members))) == members


def test_a_queue_may_change_while_it_is_read() -> None:
    first, second, third, better = (request_of(n, priority=p) for n, p in ((1, 1), (2, 1), (3, 2), (4, 0)))
    queue = queue_of("priority", first, second, third)
    seen = []
    for request in queue:
        seen.append(request)
        if request is first:
            queue.remove(first)  # as one that is admitted
            queue.add(better)
    assert seen == [first, better, second, third]
    assert list(queue) == [better, second, third]
    assert first not in queue


def serve(policy: SchedulingPolicy, request: Request, num_tokens: int) -> None:
    request.output_token_ids += [7] * num_tokens
    policy.serve(request)


def test_the_client_that_was_served_least_goes_first() -> None:
    policy = FairShare()
    greedy, modest = request_of(1, client="greedy"), request_of(2, client="modest")
    for request in (greedy, modest):
        policy.arrive(request)
    assert policy.standing(greedy) < policy.standing(modest)
    serve(policy, greedy, 0)
    assert policy.rank("greedy") == 3 * PROMPT_WEIGHT
    serve(policy, greedy, 5)
    assert policy.rank("greedy") == 3 * PROMPT_WEIGHT + 5 * OUTPUT_WEIGHT
    assert policy.standing(modest) < policy.standing(greedy)


def test_prefixes_from_the_cache_and_what_is_computed_again_cost_nothing() -> None:
    policy, request = FairShare(), request_of(1, client="a", prompt=10)
    request.num_cached_tokens = 8
    policy.arrive(request)
    serve(policy, request, 4)
    serve(policy, request, 0)
    assert policy.rank("a") == 2 * PROMPT_WEIGHT + 4 * OUTPUT_WEIGHT
    second = request_of(1, client="a", prompt=10, index=1)
    policy.arrive(second)
    serve(policy, second, 0)  # the prompt was paid for by the first member
    assert policy.rank("a") == 2 * PROMPT_WEIGHT + 4 * OUTPUT_WEIGHT


def test_what_the_last_step_gave_is_paid_for_on_leaving() -> None:
    policy, request, other = FairShare(), request_of(1, client="a"), request_of(2, client="b")
    for each in (request, other):
        policy.arrive(each)
        serve(policy, each, 0)
    request.output_token_ids += [7] * 3
    policy.leave(request)
    policy.arrive(request_of(3, client="a"))
    assert policy.rank("a") == 3 * PROMPT_WEIGHT + 3 * OUTPUT_WEIGHT


def test_idling_earns_no_credit() -> None:
    """A newcomer starts at the least served active client, as does one that comes back, even to an idle engine."""
    policy, busy = FairShare(), request_of(1, client="busy")
    policy.arrive(busy)
    serve(policy, busy, 50)
    newcomer = request_of(2, client="new")
    policy.arrive(newcomer)
    assert policy.rank("new") == policy.rank("busy")
    policy.leave(newcomer)
    serve(policy, busy, 50)
    policy.leave(busy)
    policy.arrive(request_of(3, client="new"))
    assert policy.rank("new") == policy.rank("busy") == 3 * PROMPT_WEIGHT + 100 * OUTPUT_WEIGHT


def test_a_debt_survives_leaving() -> None:
    """Who took much does not wash it off by going away and coming back."""
    policy, modest, much = FairShare(), request_of(1, client="modest"), request_of(2, client="much")
    for request in (modest, much):
        policy.arrive(request)
    serve(policy, much, 100)
    policy.leave(much)
    policy.arrive(request_of(3, client="much"))
    assert policy.rank("much") > policy.rank("modest") + 100


def test_memory_follows_the_active_clients() -> None:
    policy = FairShare()
    steady = request_of(0, client="steady")
    policy.arrive(steady)
    for number in range(2000):
        request = request_of(number + 1, client=f"client {number}")
        policy.arrive(request)
        serve(policy, request, 1)
        serve(policy, steady, 2)
        policy.leave(request)
    assert len(policy._cost) < 200
    assert list(policy._active) == ["steady"]
    assert len(policy._paid) == 1
