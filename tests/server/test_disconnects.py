"""Clients that leave, at every stage of every kind of call: the work ends, its pages come back, others go on."""

from __future__ import annotations

import json
import socket
import struct
import time

import httpx
import pytest

from paceline import LLM
from paceline.engine.worker import EngineWorker
from tests.support.http_calls import HELLO
from tests.support.live_service import eventually, is_idle, live, post, read_reply

CALLS = {
    "chat completion": ("/v1/chat/completions", {"messages": HELLO}),
    "chat": ("/chat", {"message": "hello"}),
    "completion": ("/v1/completions", {"prompt": "hello"}),
    "completions": ("/v1/completions", {"prompt": ["hello", "you", "there"], "n": 2}),
}
ENDLESS = {"max_tokens": 1900, "ignore_eos": True}
LONG = "hello " * 250


@pytest.fixture(scope="module")
def service(tiny):
    """Two answers at a time, prompts in chunks of 16 tokens, and steps slow enough to act between them."""
    target, draft = tiny
    speculative = {"method": "draft_model", "model": str(draft)}
    llm = LLM(str(target), speculative_config=speculative, num_blocks=400, max_num_seqs=2, max_num_batched_tokens=16)
    step = llm.engine.step
    llm.engine.step = lambda: time.sleep(0.002) or step()
    worker = EngineWorker(llm)
    with live(worker) as service:
        yield service
    worker.close()


def begin(service, path, fields):
    return service.connect(post(json.dumps({"model": "target"} | fields).encode(), path=path))


def leave(connection, how):
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how == "half":
        connection.shutdown(socket.SHUT_WR)
    else:
        connection.close()


def finished(service):
    return service.engine.stats()["finished"]


def steps_at(service, stage, connection, others):
    """Waits until a call is at a stage."""
    if stage == "at once":
        return
    if stage == "queued":
        eventually(lambda: service.engine.stats()["num_requests_waiting"] > 0)
    elif stage == "prefill":
        eventually(lambda: service.engine.stats()["num_requests_running"] > 0)
        assert service.engine.stats()["num_generated_tokens"] == others
    elif stage == "decode":
        eventually(lambda: service.engine.stats()["num_generated_tokens"] > others + 8)
    else:
        data = b""
        while data.count(b"data: ") < 5:
            data += connection.recv(4096)


STAGES = [
    ("at once", False), ("at once", True), ("queued", False), ("queued", True), ("prefill", False), ("prefill", True),
    ("decode", False), ("decode", True), ("between chunks", True),
]  # fmt: skip


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize(("stage", "stream"), STAGES)
def test_a_client_that_leaves(service, kind, stage, stream):
    path, fields = CALLS[kind]
    before = finished(service)
    ahead = []
    if stage == "queued":
        ahead = [begin(service, "/chat", {"message": f"hello {number}"} | ENDLESS) for number in range(2)]
        eventually(lambda: service.engine.stats()["num_requests_running"] == 2)
    if stage == "prefill":  # long, and not in the cache
        unlike = f"{kind} {stream} {LONG}"
        fields = fields | ({"messages": [{"role": "user", "content": unlike}]} if "messages" in fields else {})
        fields |= {name: unlike for name in ("message", "prompt") if name in fields}
    others = service.engine.stats()["num_generated_tokens"]
    connection = begin(service, path, fields | ENDLESS | {"stream": stream})
    steps_at(service, stage, connection, others)
    leave(connection, ("close", "reset", "half")[len(kind + stage) % 3])
    if ahead:
        assert service.engine.stats()["num_requests_running"] == 2
    for other in ahead:
        leave(other, "close")
    service.idle()
    after = finished(service)
    assert after.get("length") == before.get("length")
    service.good()


def test_figures_tell_of_those_who_left(service):
    def aborted():
        lines = httpx.get(f"{service.url}/metrics", trust_env=False).text.splitlines()
        return sum(
            float(line.split()[-1])
            for line in lines
            if line.startswith("paceline:request_success_total") and "abort" in line
        )

    before = aborted()
    connection = begin(service, "/v1/completions", {"prompt": "hello", "stream": True} | ENDLESS)
    steps_at(service, "between chunks", connection, 0)
    leave(connection, "close")
    eventually(lambda: aborted() == before + 1)


@pytest.mark.parametrize("how", ["close", "reset", "half"])
def test_a_client_that_leaves_at_the_last_token(service, how):
    """Whether its call is over by then or not, nothing of it stays."""
    for count in range(4):
        connection = begin(service, "/v1/chat/completions", {"messages": HELLO, "max_tokens": 3, "stream": True})
        data = b""
        while data.count(b"data: ") < count + 1 and b"[DONE]" not in data:  # a step may give several tokens
            data += connection.recv(4096)
        leave(connection, how)
    service.good()


def test_a_client_that_leaves_disturbs_nobody(service):
    fields = {"messages": HELLO, "max_tokens": 40, "ignore_eos": True, "seed": 5}
    alone = json.loads(read_reply(begin(service, "/v1/chat/completions", fields)).body)
    whole = begin(service, "/v1/chat/completions", fields)
    for _ in range(4):
        connection = begin(service, "/chat", {"message": "hello", "stream": True} | ENDLESS)
        connection.recv(1000)
        leave(connection, "reset")
    answer = json.loads(read_reply(whole).body)
    assert answer["choices"][0]["message"] == alone["choices"][0]["message"]
    service.good()


def test_the_control_of_these_tests(service, monkeypatch):
    """A server that forgot to abort would be seen."""
    monkeypatch.setattr(service.engine, "abort", lambda request_id: None)
    connection = begin(service, "/chat", {"message": "hello", "max_tokens": 900, "ignore_eos": True})
    eventually(lambda: service.engine.stats()["num_requests_running"] > 0)
    leave(connection, "close")
    with pytest.raises(AssertionError, match="never happened"):
        eventually(lambda: is_idle(service.engine), 0.2)
    service.idle()


def test_embeddings_whose_client_leaves(service):
    connection = begin(service, "/v1/embeddings", {"input": [f"{number} {LONG}" for number in range(8)]})
    eventually(lambda: service.engine.stats()["num_requests_running"] > 0)
    leave(connection, "close")
    service.good()
