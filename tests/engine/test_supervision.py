"""What a parent does about a child that dies, babbles, falls silent or never starts; the child here has no model."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from paceline.core.call import CallOptions
from paceline.core.errors import ConfigError, EngineDeadError, InvalidRequestError
from paceline.core.outputs import CompletionDelta, RequestMetrics, StreamUpdate, TokenLogprobs
from paceline.core.params import SamplingParams
from paceline.engine.process import launch, link, messages
from paceline.engine.process.client import EngineProcess
from paceline.engine.process.link import Link, LinkError, framed
from paceline.engine.process.restarts import RestartPolicy, Restarts
from tests.engine import light_child
from tests.support.waiting import gone, wait_for

QUICK = RestartPolicy(max_restarts=3, first_delay=0.01)
PARAMS = SamplingParams()


@contextmanager
def light(monkeypatch: pytest.MonkeyPatch, directory: Path, **options: Any) -> Iterator[EngineProcess]:
    monkeypatch.setattr(launch, "CHILD_MODULE", "tests.engine.light_child")
    client = EngineProcess(directory, **{"restart_policy": QUICK, **options})
    try:
        yield client
    finally:
        client.close()
        assert not client.alive
        assert gone(client.pid)


def ask(client: EngineProcess, *tokens: int, name: str = "mine") -> list[int]:
    async def main() -> list[StreamUpdate]:
        return [update async for update in client.generate(list(tokens), PARAMS, request_id=name)]

    (update,) = asyncio.run(asyncio.wait_for(main(), 20))
    return update.deltas[0].token_ids


def test_answers_statistics_and_refusals(monkeypatch, tmp_path):
    with light(monkeypatch, tmp_path) as client:
        assert client.ready
        assert (client.model_name, client.max_model_len, client.vocab_size, client.tokenizer) == (
            "light",
            100,
            320,
            None,
        )
        assert ask(client, light_child.ECHO, 5, 6) == [light_child.ECHO, 5, 6]
        assert client.stats() == {"answered": True}
        with pytest.raises(InvalidRequestError) as refused:
            ask(client, light_child.REFUSE)
        assert (str(refused.value), refused.value.param, refused.value.code) == (
            "no",
            "prompt",
            "context_length_exceeded",
        )
        for prompt in ([320], [True], ["x"], "text"):
            with pytest.raises(InvalidRequestError):
                client.generate(prompt, PARAMS, request_id="bad")
        assert client.restarts == 0


@pytest.mark.parametrize("fault", ["GARBAGE", "OVERSIZED", "UNTYPED", "UNKNOWN", "EXIT", "kill -9"])
def test_a_child_that_ends_or_makes_no_sense_is_replaced(fault, monkeypatch, tmp_path, caplog):
    with light(monkeypatch, tmp_path) as client:
        before = client.pid
        if fault == "kill -9":
            os.kill(before, signal.SIGKILL)
        else:
            with pytest.raises(EngineDeadError) as dead:
                ask(client, getattr(light_child, fault))
            assert dead.value.retry_after >= 1
        wait_for(lambda: client.restarts == 1 and client.ready)
        assert gone(before)
        assert client.pid != before
        assert ask(client, light_child.ECHO, 9) == [light_child.ECHO, 9]
    expected = {"EXIT": "exit code 5", "kill -9": "SIGKILL"}.get(fault, "was ended")
    assert any(expected in record.getMessage() for record in caplog.records)


def test_what_is_meant_for_nobody_is_ignored(monkeypatch, tmp_path):
    with light(monkeypatch, tmp_path) as client:

        async def main() -> None:
            lost = client.generate([light_child.FOREIGN], PARAMS, request_id="lost")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(lost), 0.1)
            await lost.aclose()

        asyncio.run(main())
        assert ask(client, light_child.ECHO, name="lost") == [light_child.ECHO]
        assert not client._streams
        assert client.restarts == 0


@pytest.mark.parametrize("kills", [False, True])
def test_a_silent_child_is_stalled_and_killed_if_so_asked(kills, monkeypatch, tmp_path):
    with light(monkeypatch, tmp_path, stall_seconds=0.4, kill_seconds=1.0 if kills else None) as client:
        before = client.pid

        async def main() -> None:
            stream = client.generate([light_child.MUTE], PARAMS, request_id="mine")
            waiting = asyncio.create_task(anext(stream))
            await asyncio.to_thread(wait_for, lambda: client.stalled)
            assert client.alive
            assert not client.ready
            if not kills:
                os.kill(before, signal.SIGCONT)
                await asyncio.to_thread(wait_for, lambda: client.ready)
                client.close()
            with pytest.raises(EngineDeadError):
                await waiting

        asyncio.run(asyncio.wait_for(main(), 20))
        if kills:
            wait_for(lambda: client.ready)
            assert gone(before)
            assert ask(client, light_child.ECHO) == [light_child.ECHO]


def test_one_that_dies_again_and_again_stays_dead(monkeypatch, tmp_path, caplog):
    with light(monkeypatch, tmp_path) as client:
        for number in range(4):
            wait_for(lambda number=number: client.restarts == number and client.alive)
            with pytest.raises(EngineDeadError):
                ask(client, light_child.EXIT)
        wait_for(lambda: "not restarted again" in caplog.text)
        wait_for(lambda: not client._supervisor._thread.is_alive())
        assert not client.ready
        for attempt in (lambda: ask(client, light_child.ECHO), client.stats):
            with pytest.raises(EngineDeadError, match="has stopped") as dead:
                attempt()
            assert dead.value.retry_after is None


def test_one_that_cannot_be_loaded_again_stays_dead(monkeypatch, tmp_path, caplog):
    with light(monkeypatch, tmp_path) as client:
        (tmp_path / "refuses").write_text("the model is gone\nPut it back.")
        os.kill(client.pid, signal.SIGKILL)
        wait_for(lambda: "not restarted again" in caplog.text)
        assert caplog.text.count("the model is gone") == QUICK.max_restarts
        assert client.restarts == 0


def test_calls_while_it_is_being_restarted_are_told_to_come_back(monkeypatch, tmp_path):
    with light(monkeypatch, tmp_path) as client:
        (tmp_path / "hangs").touch()
        os.kill(client.pid, signal.SIGKILL)
        wait_for(lambda: not client.alive)
        for attempt in (lambda: ask(client, light_child.ECHO), client.stats):
            with pytest.raises(EngineDeadError, match="restarted") as dead:
                attempt()
            assert dead.value.retry_after >= 1
        assert not client.ready
        (tmp_path / "hangs").unlink()
        wait_for(lambda: client.ready)
        assert ask(client, light_child.ECHO) == [light_child.ECHO]


@pytest.mark.parametrize("how", ["hangs", "stopped"])
def test_a_child_that_hangs_while_it_loads_again_is_killed(how, monkeypatch, tmp_path, caplog):
    with light(monkeypatch, tmp_path, kill_seconds=0.5) as client:
        before = client.pid
        (tmp_path / "hangs").touch()
        os.kill(before, signal.SIGKILL)
        wait_for(lambda: client.pid != before)
        late = client.pid
        if how == "stopped":
            os.kill(late, signal.SIGSTOP)
            (tmp_path / "hangs").unlink()
        wait_for(lambda: "still loading the model" in caplog.text)
        (tmp_path / "hangs").unlink(missing_ok=True)
        wait_for(lambda: client.ready)
        assert gone(late)
        assert ask(client, light_child.ECHO) == [light_child.ECHO]


def test_one_that_needs_longer_to_load_again_gets_it_in_the_end(monkeypatch, tmp_path, caplog):
    """Each attempt may take twice as long as the one before."""
    policy = RestartPolicy(max_restarts=20, first_delay=0.01, longest_delay=0.01)
    with light(monkeypatch, tmp_path, kill_seconds=0.01, restart_policy=policy) as client:
        needed = 6 * client._supervisor._load_seconds
        monkeypatch.setenv("LIGHT_CHILD_LOADS", str(needed))
        os.kill(client.pid, signal.SIGKILL)
        wait_for(lambda: client.restarts == 1 and client.ready)
        assert "still loading the model" in caplog.text


def test_a_child_is_tried_again_whatever_kept_one_from_starting(monkeypatch, tmp_path, caplog):
    with light(monkeypatch, tmp_path) as client:
        faults: list[Exception] = [RuntimeError("can't start new thread"), MemoryError()]
        spawn = launch._spawn
        monkeypatch.setattr(launch, "_spawn", lambda end: fail(faults) if faults else spawn(end))
        os.kill(client.pid, signal.SIGKILL)
        wait_for(lambda: client.restarts == 1 and client.ready)
        assert not faults
        assert "can't start new thread" in caplog.text


def fail(faults: list[Exception]) -> Any:
    raise faults.pop(0)


def test_closing_while_it_is_being_restarted(monkeypatch, tmp_path):
    with light(monkeypatch, tmp_path) as client:
        (tmp_path / "hangs").touch()
        os.kill(client.pid, signal.SIGKILL)
        before = client.pid
        wait_for(lambda: client.pid != before)
        client.close(timeout=0.1)
        assert gone(client.pid)
        assert not client._supervisor._thread.is_alive()


@pytest.mark.parametrize(
    ("file", "error", "message"),
    [
        ("refuses", ConfigError, "^cause\nfix$"),
        ("dies", EngineDeadError, "exit code 9 while it was loading"),
        ("chatters", LinkError, "before it had loaded"),
    ],
)
def test_a_start_that_fails(file, error, message, monkeypatch, tmp_path):
    (tmp_path / file).write_text("cause\nfix")
    children = []
    monkeypatch.setattr(
        launch.ChildProcess, "reap", lambda self, reap=launch.ChildProcess.reap: children.append(self) or reap(self)
    )
    with pytest.raises(error, match=message), light(monkeypatch, tmp_path):
        pass
    assert gone(children[0].pid)


def test_an_interrupted_start_leaves_no_child(monkeypatch, tmp_path):
    (tmp_path / "hangs").touch()
    started = []
    monkeypatch.setattr(launch, "_spawn", lambda end, spawn=launch._spawn: started.append(spawn(end)) or started[-1])
    main = threading.main_thread().ident
    threading.Thread(
        target=lambda: (wait_for(lambda: started), signal.pthread_kill(main, signal.SIGINT)), daemon=True
    ).start()
    with pytest.raises(KeyboardInterrupt), light(monkeypatch, tmp_path):
        pass
    assert gone(started[0].pid)


def test_restarts_are_counted_within_a_window():
    now = [0.0]
    restarts = Restarts(
        RestartPolicy(max_restarts=3, window_seconds=100, first_delay=1, longest_delay=3), clock=lambda: now[0]
    )
    assert [restarts.next_delay() for _ in range(4)] == [1, 2, 3, None]
    now[0] = 101
    assert restarts.next_delay() == 1


def linked() -> tuple[Link, socket.socket]:
    mine, other = socket.socketpair()
    return Link(mine), other


def test_frames_survive_any_division():
    receiver, other = linked()
    contents = [b"", b"a", b"b" * 1000, b"c" * 300_000]
    data = b"".join(framed(content) for content in contents)

    def send() -> None:
        for start in range(0, 3000, 7):
            other.sendall(data[start : min(start + 7, 3000)])
        other.sendall(data[3000:])

    writer = threading.Thread(target=send)
    writer.start()
    received: list[bytes] = []
    while len(received) < len(contents):
        received += receiver.receive(5) or pytest.fail("nothing more came")
    writer.join()
    assert received == contents
    assert receiver.receive(0.01) == []
    other.close()
    with pytest.raises(EOFError):
        receiver.receive(5)
    receiver.send(framed(b"to nobody"))
    receiver.close()


def test_a_frame_that_announces_too_much_is_refused_before_it_comes(monkeypatch):
    monkeypatch.setattr(link, "MAX_FRAME_BYTES", 1000)
    receiver, other = linked()
    other.sendall((1001).to_bytes(4, "big"))
    with pytest.raises(LinkError, match="1001 bytes"):
        receiver.receive(5)
    with pytest.raises(link.FrameTooLargeError):
        framed(b"x" * 1001)
    receiver.close()
    other.close()


def test_sending_to_a_slow_reader_never_waits():
    drained = threading.Event()
    mine, other = socket.socketpair()
    sender, reader = Link(mine, drained=drained.set), Link(other)
    contents = [bytes([number % 256]) * 100_000 for number in range(60)]
    for content in contents:
        sender.send(framed(content))
    assert sender.full
    assert not drained.is_set()
    received: list[bytes] = []
    while len(received) < len(contents):
        received += reader.receive(5) or pytest.fail("nothing more came")
    assert received == contents
    assert drained.wait(5)
    assert not sender.full
    sender.close()
    reader.close()


def test_every_field_crosses_the_link():
    """Also one that is added later: its type must be one that the link carries."""
    changed = {
        "n": 2,
        "best_of": 3,
        "temperature": 0.5,
        "logit_bias": {5: -1.5},
        "allowed_token_ids": [1, 2],
        "bad_words": ["bad"],
        "seed": -(2**63),
        "max_tokens": None,
        "stop": ["ä", "b"],
        "stop_token_ids": [3],
        "logprobs": 2,
        "prompt_logprobs": 1,
    }
    params = SamplingParams(**changed)
    options = CallOptions(
        speculate=False, priority=-3, client="me", cache_salt="salt", bad_words_token_ids=((1, 2), (3,))
    )
    call = messages.Generate(7, "mine", [1, 2, 3], params, options)
    (content,) = (messages.encode(call)[4:],)
    decoded = messages.decode_order(content)
    assert isinstance(decoded, messages.Generate)
    assert decoded == call
    assert all(getattr(decoded.params, item.name) == getattr(params, item.name) for item in fields(params))
    entry = TokenLogprobs(4, float("-inf"), 9, ((4, -1.0), (5, -2.0)))
    delta = CompletionDelta(1, "text", [4], [entry], [True], "stop", "ä", "why")
    told = messages.Updated(7, StreamUpdate("mine", [delta], RequestMetrics(1, 2, 3.0, 0.1, None, 4, 5)))
    assert messages.decode_report(messages.encode(told)[4:]) == told


def test_what_the_prompts_of_a_call_have_in_common_is_read_once():
    """Else a small body with hundreds of prompts and long lists holds up whoever's call comes next for seconds."""
    params, options = SamplingParams(stop_token_ids=range(4096)), CallOptions(client="me")
    encoder = messages.CallEncoder()
    calls = [messages.Generate(number, f"r{number}", [number], params, options) for number in range(3)]
    frames = [encoder.encode(call) for call in calls]
    assert frames == [messages.encode(call) for call in calls]
    decoded = [messages.decode_order(frame[4:]) for frame in frames]
    assert decoded == calls
    assert all(call.params is decoded[0].params and call.options is decoded[0].options for call in decoded)
    other = messages.Generate(9, "r9", [9], SamplingParams(stop_token_ids=[1]), options)
    assert messages.decode_order(encoder.encode(other)[4:]) == other


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x80", b"\x91\xa6Beat", b"\x92\xa4Beat\xa1x", b"\x91\xa7Updated"])
def test_what_is_no_message_is_refused(content):
    for decode in (messages.decode_order, messages.decode_report):
        with pytest.raises(LinkError):
            decode(content)


def test_a_call_of_the_wrong_types_harms_only_itself():
    call = messages.Generate(7, "mine", [1], SamplingParams(), CallOptions(speculate="yes"))  # type: ignore[arg-type]
    refused = messages.decode_order(messages.encode(call)[4:])
    assert isinstance(refused, messages.Refused)
    assert (refused.call, refused.invalid) == (7, True)
    assert "speculate" in refused.message


def test_a_text_that_cannot_be_sent_is_the_callers_fault(monkeypatch, tmp_path):
    async def main(client: EngineProcess) -> None:
        stream = client.generate([1], SamplingParams(stop=["\udc80"]), request_id="mine")
        with pytest.raises(InvalidRequestError) as refused:
            await anext(stream)
        assert refused.value.param == "stop"

    with light(monkeypatch, tmp_path) as client:
        asyncio.run(main(client))
        assert ask(client, light_child.ECHO) == [light_child.ECHO]
