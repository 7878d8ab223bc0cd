"""Thousands of short requests with random parameters, many left at a random moment: nothing piles up."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.support.live_service import eventually

AT_ONCE = 12
LEFT = 0.3
"""The share of requests whose client goes away."""
WORDS = ["The quick brown fox", "Count from one to ten.", "What is the capital of France?", "once upon a time", "é漢🙂"]


@dataclass
class Seen:
    answered: int = 0
    left: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Footprint:
    """What the server's processes hold."""

    kilobytes: int
    descriptors: int
    threads: int
    processes: int

    @classmethod
    def of(cls, process):
        family = [Path(f"/proc/{pid}") for pid in process.family()]
        status = [(one / "status").read_text() for one in family]

        def total(name):
            return sum(int(text.partition(f"{name}:")[2].split()[0]) for text in status)

        descriptors = sum(len(list((one / "fd").iterdir())) for one in family)
        return cls(total("VmRSS"), descriptors, total("Threads"), len(family))


def random_request(rng):
    """(path, body): few tokens, any mix of the fields that change how they are chosen or written."""
    text = " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))
    fields = {
        "temperature": rng.choice([0, 0.7, 1.0, 3.0]),
        "top_k": rng.choice([0, 1, 5, 50]),
        "top_p": rng.choice([0.3, 0.9, 1.0]),
        "min_p": rng.choice([0, 0.1]),
        "repetition_penalty": rng.choice([0.8, 1.0, 1.2]),
        "frequency_penalty": rng.choice([-1, 0, 1]),
        "seed": rng.randrange(2**40),
        "max_tokens": rng.randint(1, 24),
        "stop": rng.choice([None, "e", ["the", "\n"]]),
        "logit_bias": rng.choice([None, {"40": 5, "41": -100}]),
        "ignore_eos": rng.random() < 0.5,
        "speculation": rng.random() < 0.7,
        "stream": rng.random() < 0.6,
    }
    fields = dict(rng.sample(sorted(fields.items()), rng.randint(3, len(fields)))) | {
        "max_tokens": fields["max_tokens"]
    }
    kind = rng.randrange(8)
    if kind == 0:
        return "/v1/embeddings", {"input": [text] * rng.randint(1, 3)}
    if kind < 3:
        more = {"prompt": [text] * rng.randint(1, 3), "echo": rng.random() < 0.3, "logprobs": rng.choice([None, 0, 3])}
        return "/v1/completions", fields | more
    if kind < 5:
        return "/chat", fields | {"message": text}
    return "/v1/chat/completions", fields | {"messages": [{"role": "user", "content": text}], "n": rng.randint(1, 3)}


async def ask(client, rng, seen):
    path, body = random_request(rng)
    leaves = rng.random() < LEFT
    moment = rng.choice([0.0, rng.uniform(0, 0.02), rng.uniform(0, 0.2)]) if leaves else None
    try:
        async with asyncio.timeout(moment):
            answer = await client.post(path, json=body)
    except TimeoutError:
        seen.left += 1
        return
    if answer.status_code != 200:
        seen.wrong.append(f"{answer.status_code} {path} {json.dumps(body)} {answer.text[:300]}")
    elif body.get("stream") and '"error"' in answer.text:
        seen.wrong.append(f"{path} {json.dumps(body)} {answer.text[-300:]}")
    seen.answered += 1


async def storm(url, number, seed):
    """``number`` requests, a dozen at a time, by a client that throws away its connections when it leaves."""
    rng, seen = random.Random(seed), Seen()
    todo = iter(range(number))
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=120) as client:

        async def work():
            for _ in todo:
                await ask(client, rng, seen)

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return seen


def is_clean(stats):
    pages = stats["pages"]
    assert pages["free"] + pages["cached"] + pages["referenced"] == pages["total"]
    return pages["referenced"] == stats["num_requests_running"] == stats["num_requests_waiting"] == 0


def soak(process, rounds, each):
    """Footprints after each round, all clients gone and the engine idle."""
    prints = []
    for number in range(rounds):
        seen = asyncio.run(storm(process.url, each, seed=number))
        assert seen.wrong == []
        assert seen.left > each * LEFT / 3
        assert seen.answered + seen.left == each
        eventually(lambda: is_clean(process.stats()), 60)
        prints.append(Footprint.of(process))
        print(number, seen.answered, seen.left, prints[-1])
    return prints


def test_nothing_piles_up(server_process):
    first, second, third = soak(server_process, 3, 100)
    assert second.processes == third.processes == first.processes
    # Descriptors of connections that were just closed may linger for a moment.
    eventually(lambda: Footprint.of(server_process).descriptors <= second.descriptors + 2)
    assert third.kilobytes < first.kilobytes + 64 * 1024


@pytest.mark.full
def test_nothing_piles_up_over_ten_thousand_requests(server_process):
    prints = soak(server_process, 20, 500)
    warm, last = prints[4], prints[-1]
    eventually(lambda: Footprint.of(server_process).descriptors <= warm.descriptors + 2)
    assert (last.processes, last.threads) == (warm.processes, warm.threads)
    # 7,500 requests later: less than 4 KiB for each, allocators' drift included.
    assert last.kilobytes < warm.kilobytes + 30_000
