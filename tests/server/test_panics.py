"""Texts on which the tokenizer's native code gives up are their sender's, and nobody else's."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from paceline import LLM
from paceline.engine.worker import EngineWorker
from paceline.server import create_app
from tests.support.checkpoints import tiny_llama, tiny_tokenizer
from tests.support.http_calls import assert_error, call
from tests.support.panicking import TRAP, add_decoder_trap, add_trap, panic
from tests.support.scripted_engine import ScriptedEngine
from tests.support.server_process import serving

TROUBLED = [{"role": "user", "content": TRAP}]
ENDLESS = {"ignore_eos": True, "max_tokens": 600, "temperature": 1.0, "seed": 1}
CALLS = {
    "chat": ("/v1/chat/completions", {"messages": TROUBLED}, "messages"),
    "chat stream": ("/v1/chat/completions", {"messages": TROUBLED, "stream": True}, "messages"),
    "completion": ("/v1/completions", {"prompt": TRAP}, "prompt"),
    "long completion": ("/v1/completions", {"prompt": "x" * 5000 + TRAP}, "prompt"),
    "one of many": ("/v1/completions", {"prompt": ["hello", TRAP]}, "prompt"),
    "bad words": ("/v1/completions", {"prompt": "hello", "bad_words": ["no", TRAP]}, "bad_words"),
    "bad words, stream": ("/chat", {"message": "hello", "bad_words": [TRAP], "stream": True}, "bad_words"),
    "embedding": ("/v1/embeddings", {"input": TRAP}, "input"),
    "/chat": ("/chat", {"message": TRAP}, "messages"),
    "tokenize": ("/tokenize", {"prompt": TRAP}, "prompt"),
    "tokenize chat": ("/tokenize", {"messages": TROUBLED}, "messages"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("panics")
    target = root / "target"
    tiny_llama(target, max_positions=2048)
    tiny_tokenizer(target, max_length=2048)
    add_trap(target)
    add_decoder_trap(target)
    with serving(root / "log.txt", str(target)) as process:
        yield process.url


def ask(server, path, body):
    return httpx.post(f"{server}{path}", json=body, timeout=60, trust_env=False)


def letters(server):
    asked = ({"prompt": letter, "add_special_tokens": False} for letter in "ab")
    return [ask(server, "/tokenize", body).json()["tokens"][0] for body in asked]


@pytest.fixture(autouse=True)
def others_are_served(server):
    yield
    assert ask(server, "/v1/completions", {"prompt": "hello", "max_tokens": 3, "bad_words": ["no"]}).status_code == 200
    metrics = httpx.get(f"{server}/metrics", timeout=60, trust_env=False).text
    assert 'engine_restarts_total{model_name="target"} 0.0' in metrics


@pytest.mark.parametrize("name", CALLS)
def test_a_text_that_cannot_be_tokenised_is_refused(name, server):
    path, body, param = CALLS[name]
    error = assert_error(ask(server, path, body), 400, param=param)
    assert "tokenizer" in error["message"]
    assert TRAP not in error["message"]


def test_tokens_that_cannot_be_decoded_are_refused(server):
    a, b = letters(server)
    assert_error(ask(server, "/detokenize", {"tokens": [a] * 40 + [b]}), 400, param="tokens")


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_cannot_be_decoded_fails_alone(stream, server):
    a, b = letters(server)
    body = {"prompt": "hello", "logit_bias": {str(a): 100, str(b): 97}, "stream": stream} | ENDLESS
    answer = ask(server, "/v1/completions", body)
    if not stream:
        assert_error(answer, 500, code="generation_failed")
        return
    last = answer.text.rstrip().rpartition("\n\n")[2].removeprefix("data: ")
    assert json.loads(last)["error"]["code"] == "generation_failed"


@pytest.mark.parametrize("path", ["/health", "/v1/completions"])
def test_a_panic_that_nobody_foresaw_is_an_error_like_others(path):
    class Panicking(ScriptedEngine):
        def generate(self, *arguments, **options):
            raise panic()

        @property
        def alive(self):
            raise panic()

        @alive.setter
        def alive(self, value):
            pass

    async def go():
        transport = httpx.ASGITransport(create_app(Panicking()), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30) as client:
            if path == "/health":
                return await client.get(path)
            return await client.post(path, json={"prompt": "hello"})

    assert_error(asyncio.run(asyncio.wait_for(go(), 30)), 500)


def test_a_panic_in_the_engine_of_this_process(tiny_with_a_trap):
    worker = EngineWorker(tiny_with_a_trap)
    try:
        for body in ({"prompt": TRAP}, {"prompt": "hello", "bad_words": [TRAP]}):
            assert_error(call(worker, "POST", "/v1/completions", json=body), 400)
        assert call(worker, "POST", "/v1/completions", json={"prompt": "hello"}).status_code == 200
    finally:
        worker.close()


@pytest.fixture
def tiny_with_a_trap(tmp_path):
    tiny_llama(tmp_path)
    tiny_tokenizer(tmp_path)
    add_trap(tmp_path)
    return LLM(str(tmp_path), speculative_config=None, num_blocks=40)
