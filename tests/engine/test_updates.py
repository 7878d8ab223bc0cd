"""Updates that wait for a slow reader: joined without loss, few at a time, and never in anybody's way."""

from __future__ import annotations

import asyncio
import random
import socket
import threading

import pytest

from paceline.core.outputs import CompletionDelta, RequestMetrics, StreamUpdate, TokenLogprobs
from paceline.engine.process.link import Link, framed
from paceline.engine.process.messages import Refused, Updated, decode_report
from paceline.engine.process.outbox import Outbox
from paceline.engine.updates import MOST_WAITING, UpdateStream, WaitingUpdates, join_updates


def delta(index: int, *tokens: int, logprobs: bool = False, **rest) -> CompletionDelta:
    return CompletionDelta(
        index=index,
        text="".join(chr(97 + token) for token in tokens),
        token_ids=list(tokens),
        logprobs=[TokenLogprobs(token, -float(token), 1) for token in tokens] if logprobs else None,
        token_drafted=[token % 2 == 0 for token in tokens],
        **rest,
    )


def update(*deltas: CompletionDelta, metrics: RequestMetrics | None = None) -> StreamUpdate:
    return StreamUpdate("mine", list(deltas), metrics)


def test_one_update_is_left_as_it_is():
    one = update(delta(0, 1))
    assert join_updates([one]) is one


def test_deltas_of_the_same_answer_join():
    metrics = RequestMetrics(num_drafted=3)
    joined = join_updates(
        [
            update(delta(0, 1, 2, logprobs=True), delta(1, 3)),
            update(delta(1, 4, finish_reason="stop", stop_reason="x", error=None)),
            update(delta(0, 5, logprobs=True, finish_reason="error", error="poison"), metrics=metrics),
        ]
    )
    assert joined == update(
        delta(0, 1, 2, 5, logprobs=True, finish_reason="error", error="poison"),
        delta(1, 3, 4, finish_reason="stop", stop_reason="x"),
        metrics=metrics,
    )
    assert joined.finished


@pytest.mark.parametrize("seed", range(5))
def test_however_updates_are_grouped_a_reader_learns_the_same(seed):
    draw = random.Random(seed)
    updates = [
        update(*(delta(index, *range(draw.randrange(4)), logprobs=True) for index in range(3) if draw.random() < 0.6))
        for _ in range(30)
    ] + [update(*(delta(index, finish_reason="stop") for index in range(3)), metrics=RequestMetrics())]
    waiting, rejoined = WaitingUpdates(), []
    for item in updates:
        waiting.put(item)
        if draw.random() < 0.3:
            rejoined.append(waiting.take())
    if waiting:
        rejoined.append(waiting.take())
    assert len(rejoined) < len(updates)

    def told(stream):
        deltas = sorted((d for item in stream for d in item.deltas), key=lambda d: d.index)
        return join_updates([update(*deltas, metrics=stream[-1].metrics), update()])

    assert told(rejoined) == told(updates)


def test_few_wait_however_many_come():
    waiting = WaitingUpdates()
    for number in range(20 * MOST_WAITING):
        waiting.put(update(delta(0, number % 20)))
        assert len(waiting) <= MOST_WAITING
    assert len(waiting.take().deltas[0].token_ids) == 20 * MOST_WAITING
    assert not waiting


def test_a_stream_from_another_thread_with_a_slow_reader():
    async def main():
        stream = UpdateStream()
        total = 5000

        def write():
            for number in range(total):
                stream.put(update(delta(0, number % 20)))
            stream.put(RuntimeError("the end"))

        writer = threading.Thread(target=write)
        writer.start()
        received, takes = 0, 0
        while received < total:
            received += len((await stream.take()).deltas[0].token_ids)
            takes += 1
            await asyncio.sleep(0.001)
        writer.join()
        assert received == total
        assert takes < total / 4
        with pytest.raises(RuntimeError, match="the end"):
            await stream.take()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_stream_whose_event_loop_is_gone_takes_no_harm():
    async def make():
        return UpdateStream()

    stream = asyncio.run(make())
    for _ in range(3):
        stream.put(update(delta(0, 1)))
    stream.put(RuntimeError("late"))
    assert len(stream._waiting) == 3


def test_an_outbox_whose_link_is_full_keeps_what_comes() -> None:
    """Two calls tell of 500 tokens each, and one of its failure, while nobody reads; then all of it arrives."""
    mine, other = socket.socketpair()
    outbox, reader = Outbox(), Link(other)
    outbox.link = sender = Link(mine, drained=outbox.flush)
    big = framed(bytes([0xC1]) * 1_000_000)
    sender.send(big)
    assert sender.full
    for token in range(500):
        for call in (1, 2):
            outbox.put(call, update(delta(0, token % 20)))
        outbox.flush()
    outbox.put(3, RuntimeError("it failed"))
    outbox.flush()
    assert len(outbox._waiting) == 2
    frames: list[bytes] = []
    while len(frames) < 4:
        frames += reader.receive(20) or pytest.fail("nothing more came")
    assert frames[0] == big[4:]
    found = [decode_report(frame) for frame in frames[1:]]
    updates = {report.call: report.update for report in found if isinstance(report, Updated)}
    for call in (1, 2):
        assert [token for one in updates[call].deltas for token in one.token_ids] == [n % 20 for n in range(500)]
    assert [report.call for report in found if isinstance(report, Refused)] == [3]
    assert not outbox._waiting
    sender.close()
    reader.close()
