"""Load on a service: when requests are due, what a stream says, and a real service process from end to end."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import numpy as np
import pytest

from paceline.benchmark.arrivals import arrivals, closed, opened
from paceline.benchmark.client import Endpoint, RequestChain, send_load
from paceline.benchmark.serving import salted
from paceline.cli.loopback import running_service
from paceline.cli.main import run
from paceline.core.errors import ConfigError

STEPS = (1, 4, 2)
"""Tokens that each chunk of the scripted service brings."""


def test_constant_arrivals_are_evenly_spaced():
    assert arrivals["constant"](4, 2.0, 0) == [0.0, 0.5, 1.0, 1.5]


def test_poisson_arrivals_have_exponential_gaps():
    due = np.array(arrivals["poisson"](4000, 5.0, 3))
    gaps = np.diff(due)
    assert due[0] == 0
    assert (gaps >= 0).all()
    assert gaps.mean() == pytest.approx(0.2, rel=0.06)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.08)  # as an exponential's
    assert arrivals["poisson"](4000, 5.0, 3) == due.tolist()
    assert arrivals["poisson"](4000, 5.0, 4) != due.tolist()


@pytest.mark.parametrize(
    ("kind", "rate"), [("poisson", 0.0), ("poisson", -1.0), ("constant", float("nan")), ("x", 1.0)]
)
def test_loads_that_make_no_sense_are_refused(kind, rate):
    with pytest.raises(ConfigError):
        opened(kind, rate)


def test_salted_prompts_differ_and_keep_their_length_and_opening():
    prompt = list(range(100, 110))
    found = [salted(prompt, salt, [3, 4, 5]) for salt in range(9)]
    assert len({tuple(one) for one in found}) == 9
    assert all(one[0] == 100 and one[3:] == prompt[3:] and len(one) == 10 for one in found)
    assert [len(salted(prompt[:size], 5, [3, 4])) for size in (1, 2, 3)] == [1, 2, 3]


class Scripted(BaseHTTPRequestHandler):
    """Streams chunks of several tokens, each ``pause`` after the one before; counts who is there at the same time."""

    pause, running, most, fail, lock = 0.03, 0, 0, False, threading.Lock()
    prompts: list = []
    """What was asked, in order; an answer's tokens number 1000 times the tokens of its prompt, and on."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            Scripted.running += 1
            Scripted.most = max(Scripted.most, Scripted.running)
            Scripted.prompts.append(body["prompt"])
        self.send_response(503 if self.fail else 200)
        self.end_headers()
        if not self.fail:
            self._stream(body)
        with self.lock:
            Scripted.running -= 1

    def _stream(self, body):
        token = 1000 * len(body["prompt"])
        for count in STEPS:
            time.sleep(self.pause)
            token_ids = list(range(token, token + count))
            token += count
            extra = {"tokens": ["x"] * count, "token_ids": token_ids, "drafted": [False] * count}
            self._send({"choices": [{"text": "x"}], "paceline": extra})
        cached = {"cached_tokens": len(body["prompt"]) // 2}
        self._send({"choices": [], "usage": {"prompt_tokens": len(body["prompt"]), "prompt_tokens_details": cached}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _send(self, chunk):
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    def log_message(self, *_):
        pass


@contextmanager
def scripted(*, fail=False):
    Scripted.running = Scripted.most = 0
    Scripted.fail, Scripted.prompts = fail, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Endpoint(f"http://127.0.0.1:{server.server_port}", {})
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def load(service, how, count=5):
    def asking(number):
        return RequestChain(lambda _answers: {"prompt": [1] * (number + 1)})

    return asyncio.run(send_load(service, [asking(number) for number in range(count)], how, seed=0))


def test_tokens_are_counted_and_timed_by_chunk_not_by_event():
    with scripted() as service:
        seconds, served = load(service, closed(1))
    assert [one.num_prompt_tokens for one in served] == [1, 2, 3, 4, 5]
    assert Scripted.most == 1
    for one in served:
        assert one.error is None
        assert [count for _, count in one.times.steps] == list(STEPS)
        assert one.times.time_to_first_token >= Scripted.pause
        gaps = one.times.step_latencies
        assert one.times.inter_token_latencies == pytest.approx([gaps[0] / 4] * 4 + [gaps[1] / 2] * 2)
    assert seconds >= 5 * 3 * Scripted.pause


def test_a_closed_loop_keeps_its_number_in_progress():
    with scripted() as service:
        _, served = load(service, closed(2), count=6)
    assert Scripted.most == 2
    assert all(one.error is None for one in served)


ANSWER = sum(STEPS)


def dialogue(number, num_turns=3):
    """Each turn is the one before, its answer, and two tokens more."""

    def body(answers):
        prompt = [number]
        for answer in answers:
            prompt += [*answer, 7, 7]
        return {"prompt": prompt}

    return RequestChain(body, num_turns)


@pytest.mark.parametrize("how", [closed(2), opened("constant", 1000.0)])
def test_each_turn_appends_the_answer_before_and_starts_when_that_has_come(how):
    with scripted() as service:
        _, served = asyncio.run(send_load(service, [dialogue(5), dialogue(6, 1), dialogue(7)], how, seed=0))
    assert [(one.conversation, one.turn) for one in served] == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1), (2, 2)]
    first = served[0].token_ids
    assert first == list(range(1000, 1000 + ANSWER))
    assert [5, *first, 7, 7] in Scripted.prompts
    assert [5, *first, 7, 7, *served[1].token_ids, 7, 7] in Scripted.prompts
    assert [one.num_prompt_tokens for one in served[:3]] == [1, 3 + ANSWER, 5 + 2 * ANSWER]
    assert [one.num_cached_tokens for one in served[:3]] == [0, (3 + ANSWER) // 2, (5 + 2 * ANSWER) // 2]
    for before, after in pairwise(served):
        if after.turn:
            assert after.times.start >= before.times.times[-1]
            assert after.times.time_to_first_token >= Scripted.pause


def test_a_conversation_whose_turn_fails_goes_no_further():
    with scripted(fail=True) as service:
        _, served = asyncio.run(send_load(service, [dialogue(1), dialogue(2)], closed(1), seed=0))
    assert [(one.conversation, one.turn, one.error is None) for one in served] == [(0, 0, False), (1, 0, False)]


def test_an_open_loop_does_not_wait_for_answers():
    with scripted() as service:
        seconds, served = load(service, opened("constant", 200.0), count=8)
    assert Scripted.most > 2
    assert seconds >= 7 / 200
    starts = [one.times.start for one in served]
    assert np.diff(starts) == pytest.approx([1 / 200] * 7)  # due times, whenever they were sent


def test_failures_are_told_apart():
    with scripted(fail=True) as service:
        _, served = load(service, closed(2), count=2)
    assert all("503" in one.error for one in served)
    nowhere = Endpoint("http://127.0.0.1:9", {})
    assert "Connect" in load(nowhere, closed(1), count=1)[1][0].error


def test_a_real_service(pair, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--num-requests", "4", "--input-lens", "12", "--output-lens", "40", "--pairs", "1", "--threads", "1"]
    engine = [pair[0], "--draft", pair[1], "--device", "cpu", "--max-num-seqs", "4"]
    assert run(["bench", "serve", *engine, *options, "--rates", "50", "--json", "out.json", "--raw", "raw.json"]) == 0
    found, raw = (json.loads((tmp_path / name).read_text()) for name in ("out.json", "raw.json"))
    ((name, point),) = found["points"].items()
    assert name == "poisson, 50/s, 4 requests, input 12, output 40"
    for side in point["sides"].values():
        assert side["figures"]["num_tokens"]["median"] == 4 * 40
        assert side["figures"]["num_failed"]["median"] == 0
    assert point["sides"]["subject"]["acceptance"]["rate"] > 0
    assert point["sides"]["control"]["acceptance"] is None
    (block,) = raw["points"][name]["blocks"]
    answers = block["pairs"][0]["control"]["detail"]["answers"]
    assert [(one["num_prompt_tokens"], one["num_tokens"], one["error"]) for one in answers] == [(12, 40, None)] * 4
    assert "speculation off" in capsys.readouterr().out


def test_dialogues_find_their_prefixes_and_without_the_cache_do_not(pair, tmp_path, monkeypatch, capsys):
    """Per turn; and the control plants what would be wrong: a cache that finds nothing."""
    monkeypatch.chdir(tmp_path)
    options = ["--num-requests", "2", "--input-lens", "40", "--output-lens", "40", "--pairs", "1", "--warmup", "0"]
    options += ["--turns", "3", "--concurrency", "2", "--control", "prefix-cache", "--threads", "1"]
    engine = [pair[0], "--no-speculation", "--device", "cpu", "--max-num-seqs", "4"]
    assert run(["bench", "serve", *engine, *options, "--json", "out.json", "--raw", "raw.json"]) == 0
    found, raw = (json.loads((tmp_path / name).read_text()) for name in ("out.json", "raw.json"))
    ((name, point),) = found["points"].items()
    assert list(point["turns"]) == ["turn 1", "turn 2", "turn 3"]
    assert "first token of turn 3: " in capsys.readouterr().out
    (shown,) = raw["points"][name]["blocks"][0]["pairs"]
    for side, finds in (("subject", True), ("control", False)):
        assert point["sides"][side]["figures"]["num_tokens"]["median"] == 2 * 3 * 40
        answers = shown[side]["detail"]["answers"]
        assert [(one["turn"], one["num_prompt_tokens"]) for one in answers[:3]] == [(0, 40), (1, 120), (2, 200)]
        assert [one["num_cached_tokens"] > 0 for one in answers] == [False, finds, finds] * 2
        assert (point["sides"][side]["figures"]["cached_share"]["median"] > 0) == finds


def test_a_service_that_runs_already(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--num-requests", "2", "--input-lens", "12", "--output-lens", "40", "--pairs", "1", "--warmup", "0"]
    with running_service([pair[0], "--draft", pair[1], "--device", "cpu", "--max-num-seqs", "4"]) as client:
        url = ["--url", str(client.base_url), "--concurrency", "2", "--json", "out.json"]
        monkeypatch.setenv("PACELINE_API_KEY", "wrong")
        assert run(["bench", "serve", pair[0], *options, *url]) == 2
        monkeypatch.setenv("PACELINE_API_KEY", client.headers["Authorization"].removeprefix("Bearer "))
        assert run(["bench", "serve", pair[0], *options, *url]) == 0
        assert client.get("/health").status_code == 200  # it was not ours to stop
    found = json.loads((tmp_path / "out.json").read_text())
    (point,) = found["points"].values()
    assert point["sides"]["control"]["acceptance"] is None
    assert point["sides"]["subject"]["acceptance"]["rate"] > 0
    assert found["parameters"]["url"] == url[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--concurrency"),
        (["--concurrency", "1", "--rates", "1"], "--concurrency"),
        (["--rates", "x"], "--rates"),
        (["--rates", "0"], "--rates"),
        (["--rates", "1", "--arrivals", "bursts"], "kind of arrivals"),
        (["--concurrency", "2", "--metric", "x"], "request_latency"),
        (["--concurrency", "2", "--url", "http://127.0.0.1:9", "--control", "prefix-cache"], "--control speculation"),
        (["--concurrency", "2", "--url", "http://127.0.0.1:9"], "127.0.0.1:9"),
        (["--concurrency", "2", "--num-requests", "0"], "--num-requests"),
    ],
)
def test_what_cannot_work_is_refused_before_a_service_starts(pair, capsys, options, said):
    assert run(["bench", "serve", pair[0], *options]) == 2
    assert said in capsys.readouterr().err
