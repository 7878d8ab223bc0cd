"""The service behind LangChain's own classes for OpenAI: chat, completions, embeddings, errors."""

from __future__ import annotations

import asyncio
import warnings

import openai
import pytest

from tests.support.live_service import live
from tests.support.scripted_engine import ScriptedEngine

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    langchain_openai = pytest.importorskip("langchain_openai", reason="needs the extra [clients]")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
SAMPLING = {"temperature": 1.0, "seed": 5, "max_retries": 0}
QUESTION = "What is the capital of France?"


@pytest.fixture(autouse=True)
def _stays_here(monkeypatch):
    for name in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2"):
        monkeypatch.setenv(name, "false")


def chat_of(url, model, **more):
    return langchain_openai.ChatOpenAI(base_url=f"{url}/v1", api_key="none", model=model, **(SAMPLING | more))


def test_chat(server):
    chat = chat_of(server, "target", max_tokens=12, extra_body={"ignore_eos": True})
    whole = chat.invoke(QUESTION)
    assert whole.usage_metadata["output_tokens"] == 12
    assert whole.response_metadata["finish_reason"] == "length"
    assert whole.content
    parts = list(chat.stream(QUESTION, stream_usage=True))
    assert "".join(part.content for part in parts) == whole.content
    assert sum(part.usage_metadata["output_tokens"] for part in parts if part.usage_metadata) == 12
    assert asyncio.run(chat.ainvoke(QUESTION)).content == whole.content
    assert [answer.content for answer in chat.batch([QUESTION] * 3)] == [whole.content] * 3


def test_log_probabilities(server):
    answer = chat_of(server, "target", max_tokens=4, logprobs=True, top_logprobs=2).invoke(QUESTION)
    entries = answer.response_metadata["logprobs"]["content"]
    assert 1 <= len(entries) <= 4
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)


def test_completions(server):
    model = langchain_openai.OpenAI(base_url=f"{server}/v1", api_key="none", model="target", max_tokens=8, **SAMPLING)
    prompts = ["The quick brown fox", "Count from one"]
    whole = [generation[0].text for generation in model.generate(prompts).generations]
    assert len(whole) == 2
    assert ["".join(model.stream(prompt)) for prompt in prompts] == whole


def test_embeddings(server):
    model = langchain_openai.OpenAIEmbeddings(
        base_url=f"{server}/v1", api_key="none", model="target", check_embedding_ctx_length=False
    )
    vectors = model.embed_documents(["one", "two"])
    assert vectors[0] != vectors[1]
    assert model.embed_query("one") == pytest.approx(vectors[0], abs=1e-6)


def test_a_stream_that_fails_is_an_error():
    with live(ScriptedEngine(fault="error", fault_after=3)) as service:
        with pytest.raises(openai.APIError, match="failed in the engine"):
            list(chat_of(service.url, "scripted").stream(QUESTION))
        service.idle()
