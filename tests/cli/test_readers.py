"""Both readers of event streams, on one as another engine writes it: with line ends of Unicode as they are."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from paceline.benchmark.arrivals import closed
from paceline.benchmark.client import Endpoint, RequestChain, send_load
from paceline.cli.comparison import Question, ask

METRICS = {
    "time_per_output_token": None, "drafted_tokens": 0, "accepted_tokens": 0, "mean_acceptance_length": 1.0,
}  # fmt: skip


@contextmanager
def streaming(*written: object):
    """A service that answers every call with these events, uncommonly but properly written."""
    lines = [part if isinstance(part, str) else json.dumps(part, ensure_ascii=False) for part in written]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(b": a comment\n\n" + "".join(f"data:{line}\r\n\r\n" for line in lines).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(20)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85"])
def test_the_demo_s(mark):
    text = f"one{mark}two"
    last = {"delta": "", "tokens": [], "drafted": [], "usage": {"completion_tokens": 1}, "metrics": METRICS}
    first = {"delta": text, "tokens": [text], "drafted": [False]}
    with streaming(first, last) as url, httpx.Client(base_url=url, trust_env=False) as client:
        answer = ask(client, Question("x"), speculation=False)
    assert "".join(part for part, _ in answer.spans) == text


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85"])
def test_the_benchmark_s(mark):
    chunk = {"choices": [{"text": f"a{mark}b"}], "paceline": {"drafted": [False, True], "token_ids": [5, 6]}}
    usage = {"choices": [], "usage": {"prompt_tokens": 3}}
    with streaming(chunk, usage, "[DONE]") as url:
        _, (served,) = asyncio.run(send_load(Endpoint(url, {}), [RequestChain(lambda _: {})], closed(1), seed=0))
    assert served.error is None
    assert (list(served.token_ids), served.num_prompt_tokens) == ([5, 6], 3)
