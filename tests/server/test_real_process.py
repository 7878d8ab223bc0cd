"""The service as users run it: a process of its own with a real engine, called by the official client."""

from __future__ import annotations

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

HELLO = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def model(client):
    return client.models.list().data[0].id


def ask(client, model, **fields):
    fields = {"max_tokens": 24, "temperature": 1.0, "seed": 7, "messages": HELLO} | fields
    ours = ("speculation", "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids")
    extra = {name: fields.pop(name) for name in ours if name in fields}
    return client.chat.completions.create(model=model, extra_body=extra, **fields)


def whole(response):
    return [(choice.message.content, choice.finish_reason) for choice in response.choices]


def joined(stream, n=1):
    texts, reasons = [""] * n, [None] * n
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    return list(zip(texts, reasons, strict=True))


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_streaming_and_speculation_are_invisible(client, model, n, temperature):
    fields = {"n": n, "temperature": temperature, "ignore_eos": True}
    expected = whole(ask(client, model, speculation=False, **fields))
    assert whole(ask(client, model, **fields)) == expected
    assert joined(ask(client, model, stream=True, **fields), n) == expected
    assert all(text and reason == "length" for text, reason in expected)


def test_speculation_took_part_and_is_reported(client, model):
    plain, drafted = (ask(client, model, temperature=0, ignore_eos=True, speculation=on) for on in (False, True))
    assert plain.paceline["drafted_tokens"] == 0
    assert drafted.paceline["drafted_tokens"] > 0
    assert drafted.paceline["time_to_first_token"] > 0
    assert drafted.usage.completion_tokens == len(drafted.choices[0].paceline["drafted"]) == 24


def test_stop_strings(client, model):
    text = whole(ask(client, model, ignore_eos=True))[0][0]
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    expected = [(text[: text.index(stop)], "stop")]
    assert whole(ask(client, model, ignore_eos=True, stop=stop)) == expected
    assert joined(ask(client, model, ignore_eos=True, stop=[stop], stream=True)) == expected


def test_logprobs(client, model):
    (choice,) = ask(client, model, logprobs=True, top_logprobs=3, max_tokens=5, ignore_eos=True).choices
    assert len(choice.logprobs.content) == 5
    for item in choice.logprobs.content:
        assert item.logprob <= 0
        assert len(item.top_logprobs) == 3
        assert item.logprob <= item.top_logprobs[0].logprob


def test_usage_at_the_end_of_a_stream(client, model):
    *_, last = ask(client, model, stream=True, ignore_eos=True, stream_options={"include_usage": True})
    assert (last.choices, last.usage.completion_tokens) == ([], 24)


def test_completions_of_several_prompts(client, model):
    fields = {"max_tokens": 9, "temperature": 1.0, "seed": 3, "n": 2, "extra_body": {"ignore_eos": True}}
    prompts = ["The quick brown fox", "Count from one"]
    whole = client.completions.create(model=model, prompt=prompts, echo=True, logprobs=2, **fields)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    texts = [""] * 4
    for chunk in client.completions.create(model=model, prompt=prompts, echo=True, logprobs=2, stream=True, **fields):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert all(text.startswith(prompts[index // 2]) and len(text) > 20 for index, text in enumerate(texts))
    assert whole.usage.completion_tokens == 36
    for choice in whole.choices:
        lists = choice.logprobs
        assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.top_logprobs) == len(lists.text_offset)
        assert lists.token_logprobs[0] is None
        assert max(lists.token_logprobs[1:]) < 0


def test_a_stream_of_completions_ends_with_its_usage(client, model):
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    *_, last = client.completions.create(model=model, prompt=[5, 6, 7], max_tokens=4, **stream)
    assert (last.choices, last.usage.prompt_tokens) == ([], 3)
    assert 1 <= last.usage.completion_tokens <= 4


def test_embeddings(client, model):
    texts = ["The quick brown fox", "What is the capital of France?"]
    packed = client.embeddings.create(model=model, input=texts)
    plain = client.embeddings.create(model=model, input=texts, encoding_format="float")
    for mine, other in zip(packed.data, plain.data, strict=True):
        assert mine.embedding == pytest.approx(other.embedding, abs=1e-7)
        assert sum(value * value for value in mine.embedding) == pytest.approx(1.0, abs=1e-5)
    assert packed.data[0].embedding != packed.data[1].embedding
    assert packed.usage.prompt_tokens == packed.usage.total_tokens > 10
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model=model, input=texts, dimensions=8)


def test_figures_of_the_process(server, client, model):
    ask(client, model, ignore_eos=True)
    assert httpx.get(f"{server}/ready").status_code == 200
    figures = dict(
        line.rsplit(" ", 1)
        for line in httpx.get(f"{server}/metrics").text.splitlines()
        if f'model_name="{model}"' in line and "_bucket" not in line
    )
    value = {name.partition("{")[0].removeprefix("paceline:"): float(number) for name, number in figures.items()}
    assert value["generation_tokens_total"] >= 24
    assert value["spec_decode_num_accepted_tokens_total"] > 0
    assert value["e2e_request_latency_seconds_sum"] > value["request_queue_time_seconds_sum"] > 0
    assert value["inter_token_latency_seconds_count"] >= 23


def test_errors_are_the_clients_exceptions(client, model):
    with pytest.raises(openai.BadRequestError, match="temperature"):
        ask(client, model, temperature=-1)
    with pytest.raises(openai.NotFoundError) as unknown:
        ask(client, "gpt-4")
    assert unknown.value.code == "model_not_found"
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as long:
            ask(client, model, messages=[{"role": "user", "content": "x1" * 3000}], stream=stream)
        assert long.value.code == "context_length_exceeded"


def test_chat(server):
    fields = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
    whole = httpx.post(f"{server}/chat", json={"message": "Hi", **fields}, timeout=60).json()
    with httpx.stream("POST", f"{server}/chat", json={"message": "Hi", "stream": True, **fields}, timeout=60) as stream:
        parts = [json.loads(line[6:]) for line in stream.iter_lines() if line]
    assert "".join(part["delta"] for part in parts) == whole["text"]
    assert [flag for part in parts for flag in part["drafted"]] == whole["drafted"]
    assert parts[-1]["usage"] == whole["usage"]
    assert parts[-1]["metrics"].keys() == whole["metrics"].keys()


def idle_within(server, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        stats = httpx.get(f"{server}/stats").json()
        if stats["num_requests_running"] == stats["num_requests_waiting"] == 0:
            return stats
        time.sleep(0.02)
    return pytest.fail(f"still running: {stats}")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_request(server, model, stream):
    idle_within(server, 5)
    before = httpx.get(f"{server}/stats").json()
    many = {"max_tokens": 1800, "n": 32, "ignore_eos": True}  # so much that it is not over before the client leaves
    body = {"model": model, "messages": HELLO, "stream": stream, **many}
    connection = http.client.HTTPConnection(server.removeprefix("http://"))
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    while httpx.get(f"{server}/stats").json()["num_requests_running"] == 0:
        time.sleep(0.005)
    if stream:
        connection.getresponse().read(10)
    connection.close()
    stats = idle_within(server, 3)
    assert stats["finished"].get("length") == before["finished"].get("length")
    assert stats["num_generated_tokens"] < before["num_generated_tokens"] + 32 * 1800


def test_many_at_once_get_what_each_gets_alone(client, model):
    prompts = [[{"role": "user", "content": f"Count to {number}."}] for number in range(6)]
    alone = [whole(ask(client, model, messages=messages, ignore_eos=True)) for messages in prompts]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda m: whole(ask(client, model, messages=m, ignore_eos=True)), prompts))
    assert together == alone


def test_a_body_over_the_limit_while_it_is_read(server):
    def chunks():
        for _ in range(4000):
            yield b" " * 1024

    try:
        response = httpx.post(f"{server}/chat", content=chunks(), headers={"Content-Type": "application/json"})
    except httpx.WriteError:  # The server may close before all is sent.
        return
    assert response.status_code == 413
    assert response.json()["error"]["message"]
