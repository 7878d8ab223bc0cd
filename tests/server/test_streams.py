"""What streams carry beside the text: line ends that only some readers know, and the usage so far."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from tests.support.http_calls import HELLO, assert_error, chat, complete, events, post
from tests.support.live_service import live
from tests.support.scripted_engine import ScriptedEngine

LINE_ENDS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\r\nj\rk\nl\x00m\x7fn\u0600o\U0001f600"
"""Everything that ends a line for somebody, and some characters that do not."""


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/chat"])
def test_no_reader_of_lines_breaks_an_event(path):
    body = {"messages": HELLO} if path != "/v1/completions" else {"prompt": "a", "max_tokens": 100}
    read = {"/chat": lambda c: c["delta"], "/v1/completions": lambda c: c["choices"][0]["text"]}.get(
        path, lambda c: c["choices"][0]["delta"].get("content", "")
    )
    with live(ScriptedEngine(LINE_ENDS)) as service, httpx.Client(trust_env=False) as client:
        text = client.post(f"{service.url}{path}", json=body | {"stream": True}).text
    lines = [line for line in text.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    chunks = [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]
    assert "".join(map(read, chunks)) == LINE_ENDS


def test_an_error_that_quotes_line_ends_is_one_line():
    engine = ScriptedEngine(fault=openai.OpenAIError("x"), fault_after=2)
    text = complete(engine, stream=True).text
    assert len(text.splitlines()) == len(text.split("\n")) - 1
    assert "error" in json.loads(text.strip().rpartition("data: ")[2])


def test_openai_reads_them():
    with live(ScriptedEngine(LINE_ENDS)) as service, openai.OpenAI(base_url=f"{service.url}/v1", api_key="x") as client:
        chunks = list(client.chat.completions.create(model="scripted", messages=HELLO, stream=True))
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == LINE_ENDS


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_every_chunk_has_the_usage_so_far(path, n):
    body = {"messages": HELLO} if "chat" in path else {"prompt": ["a", "b"], "max_tokens": 5}
    both = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last, done = events(post(ScriptedEngine(), path, **body, n=n, stream=True, stream_options=both))
    assert done == "[DONE]"
    counted = 0
    for chunk in chunks:
        counted += len(chunk.get("paceline", {}).get("token_ids", []))
        assert chunk["usage"]["completion_tokens"] == counted
        assert chunk["usage"]["total_tokens"] == chunk["usage"]["prompt_tokens"] + counted
    assert counted > n
    assert last["choices"] == []
    assert last["usage"] == chunks[-1]["usage"]


def test_without_a_last_chunk_where_none_is_wanted():
    *chunks, done = events(complete(ScriptedEngine(), stream=True, stream_options={"continuous_usage_stats": True}))
    assert done == "[DONE]"
    assert all(chunk["choices"] for chunk in chunks)
    assert chunks[-1]["usage"]["completion_tokens"] == len(ScriptedEngine().script)


@pytest.mark.parametrize("options", [{}, {"include_usage": False}, {"include_usage": None}, None])
def test_stream_options_that_ask_for_nothing_are_taken_without_a_stream(options):
    assert complete(ScriptedEngine(), stream_options=options).status_code == 200
    assert post(ScriptedEngine(), "/v1/completions", prompt="a", stream_options=options).status_code == 200


@pytest.mark.parametrize("options", [{"include_usage": True}, {"continuous_usage_stats": True}, {"include_usage": 1}])
def test_others_need_one(options):
    assert_error(complete(ScriptedEngine(), stream_options=options), 400, param="stream_options")
    assert chat(ScriptedEngine(), message="a", stream=False).status_code == 200
