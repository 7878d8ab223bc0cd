"""The endpoints over a real engine in this process: what they say is what the engine says."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from paceline import RequestOutput, SamplingParams
from paceline.engine.worker import EngineWorker
from tests.support.calls import assert_idle, make
from tests.support.checkpoints import perturb, tiny_llama, tiny_tokenizer
from tests.support.http_calls import call, events, post

TEXTS = ["The quick brown fox", "naïve café, 東京, 🙂.", "What is the capital of France?"]


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    """Drafts are sometimes right, prompts come in chunks."""
    target, draft = (tmp_path_factory.mktemp(name) for name in ("scripted", "draft"))
    tiny_llama(target)
    tiny_tokenizer(target)
    perturb(target, draft, 0.1)
    worker = EngineWorker(make(target, draft, max_num_batched_tokens=11))
    worker.model_name = "scripted"
    yield worker
    worker.close()
    assert_idle(worker.llm.engine)


class BetweenSteps:
    """The worker's LLM, called on the worker's thread: no other may step its engine, even once an answer is told."""

    def __init__(self, worker: EngineWorker) -> None:
        self.worker, self.tokenizer = worker, worker.tokenizer

    def generate(self, *arguments: Any) -> list[RequestOutput]:
        return self._call(lambda: self.worker.llm.generate(*arguments))

    def embed(self, prompts: list[str], *, pooling: str) -> list[RequestOutput]:
        return self._call(lambda: self.worker.llm.embed(prompts, pooling=pooling))

    def _call(self, call: Callable[[], list[RequestOutput]]) -> list[RequestOutput]:
        found: Future[list[RequestOutput]] = Future()
        assert self.worker.loop.soon(lambda: found.set_result(call()))
        return found.result(60)


@pytest.fixture
def llm(worker):
    return BetweenSteps(worker)


def test_only_the_worker_steps_its_engine(worker, llm, monkeypatch):
    """It looks whether there is work once more after an answer is told: what is begun meanwhile it would step too."""
    steppers, step = set(), worker.llm.engine.step
    monkeypatch.setattr(worker.llm.engine, "step", lambda: steppers.add(threading.current_thread()) or step())
    monkeypatch.setattr(worker.loop, "_after_step", lambda: time.sleep(0.02))
    for _ in range(3):
        completions(worker, prompt=TEXTS[0], max_tokens=2)
        llm.generate(TEXTS[0], SamplingParams(max_tokens=8, ignore_eos=True))
    assert steppers == {worker._thread}


def completions(worker, **body):
    response = post(worker, "/v1/completions", **({"temperature": 0, "ignore_eos": True} | body))
    assert response.status_code == 200, response.text
    return response.json()


def log_likelihoods(logprobs, num_context):
    """As evaluation harnesses read an echoed prompt: the sum over the continuation, and whether it is greedy."""
    values, tops = logprobs["token_logprobs"][num_context:-1], logprobs["top_logprobs"][num_context:-1]
    return sum(values), all(value == max(top.values()) for value, top in zip(values, tops, strict=True))


@pytest.mark.parametrize("as_ids", [False, True])
def test_echoed_logprobs_are_those_of_the_engine(worker, llm, as_ids):
    prompts = [llm.tokenizer.encode(text) for text in TEXTS] if as_ids else TEXTS
    body = completions(worker, prompt=prompts, echo=True, logprobs=2, max_tokens=1)
    outputs = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=1, logprobs=2, prompt_logprobs=2))
    for choice, output, text in zip(body["choices"], outputs, TEXTS, strict=True):
        answer, lists = output.outputs[0], choice["logprobs"]
        assert choice["text"] == text + answer.text
        entries = [*output.prompt_logprobs, *answer.logprobs]
        assert lists["token_logprobs"] == [None if entry is None else entry.logprob for entry in entries]
        assert lists["token_logprobs"][0] is lists["top_logprobs"][0] is None
        for top, entry in zip(lists["top_logprobs"][1:], entries[1:], strict=True):
            assert {value for _, value in entry.top} <= set(top.values())
            assert entry.logprob in top.values()
        offsets = [*lists["text_offset"], len(choice["text"])]
        whole = [choice["text"][start:end] for start, end in pairwise(offsets)]
        assert "".join(whole) == choice["text"]
    assert len({len(choice["logprobs"]["tokens"]) for choice in body["choices"]}) == 3


def test_a_continuation_is_greedy_exactly_if_the_engine_would_choose_it(worker, llm):
    context = llm.tokenizer.encode(TEXTS[0])
    greedy = llm.generate(context, SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True))[0].outputs[0]
    other = [*greedy.token_ids[:4], (greedy.token_ids[4] + 1) % 300 + 3]
    body = completions(
        worker, prompt=[context + greedy.token_ids, context + other], echo=True, logprobs=1, max_tokens=1
    )
    likely, unlikely = (log_likelihoods(choice["logprobs"], len(context)) for choice in body["choices"])
    assert (likely[1], unlikely[1]) == (True, False)
    assert likely[0] > unlikely[0]


@pytest.mark.parametrize(
    "fields", [{"echo": True, "logprobs": 1}, {"logprobs": 3, "n": 2, "temperature": 1, "seed": 4}]
)
def test_streams_join_to_the_whole(worker, fields):
    body = {"prompt": TEXTS, "max_tokens": 9} | fields
    whole = completions(worker, **body)["choices"]
    *chunks, done = events(
        post(
            worker,
            "/v1/completions",
            temperature=fields.get("temperature", 0),
            ignore_eos=True,
            stream=True,
            **{k: v for k, v in body.items() if k != "temperature"},
        )
    )
    assert done == "[DONE]"
    for choice in whole:
        mine = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in mine) == choice["text"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"] == "length"
        for name, items in choice["logprobs"].items():
            assert [item for part in mine if part["logprobs"] for item in part["logprobs"][name]] == items
    assert [choice["index"] for choice in whole] == list(range(len(TEXTS) * fields.get("n", 1)))


def test_speculation_and_neighbours_are_invisible(worker):
    fields = {"max_tokens": 12, "temperature": 1, "seed": 9, "n": 2}
    together = completions(worker, prompt=TEXTS, **fields)["choices"]
    alone = [
        choice for text in TEXTS for choice in completions(worker, prompt=text, speculation=False, **fields)["choices"]
    ]
    assert [choice["text"] for choice in together] == [choice["text"] for choice in alone]
    assert len({choice["text"] for choice in together}) == 6


def test_best_of_is_the_engine_s(worker, llm):
    params = SamplingParams(temperature=1.0, seed=3, n=2, best_of=6, max_tokens=8, ignore_eos=True)
    (output,) = llm.generate(TEXTS[0], params)
    body = completions(worker, prompt=TEXTS[0], temperature=1, seed=3, n=2, best_of=6, max_tokens=8)
    assert [choice["text"] for choice in body["choices"]] == [answer.text for answer in output.outputs]
    assert body["usage"]["completion_tokens"] == 48


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_are_the_engine_s(worker, llm, pooling):
    wanted = [output.embedding for output in llm.embed(TEXTS, pooling=pooling)]
    body = post(worker, "/v1/embeddings", input=TEXTS, pooling=pooling).json()
    assert [item["embedding"] for item in body["data"]] == wanted
    packed = post(worker, "/v1/embeddings", input=TEXTS, pooling=pooling, encoding_format="base64").json()
    found = [np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in packed["data"]]
    np.testing.assert_array_equal(found, np.array(wanted, dtype=np.float32))
    assert np.linalg.norm(wanted, axis=1) == pytest.approx([1.0] * 3)


def test_an_echo_without_an_answer_is_whole(worker, llm):
    """Every token is banned, so the answer ends before its first."""
    (token,) = llm.tokenizer.encode("e", add_special_tokens=False)
    body = {"prompt": TEXTS[1], "echo": True, "logprobs": 1, "allowed_token_ids": [token], "bad_words": ["e"]}
    (choice,) = completions(worker, **body)["choices"]
    assert (choice["text"], choice["finish_reason"]) == (TEXTS[1], "stop")
    assert {len(items) for items in choice["logprobs"].values()} == {len(llm.tokenizer.encode(TEXTS[1]))}
    echoed, _ended, _done = events(post(worker, "/v1/completions", stream=True, **body))
    assert echoed["choices"][0]["logprobs"] == choice["logprobs"]


def test_a_prompt_too_long_says_so(worker):
    for path, name, longest in (("/v1/completions", "prompt", 255), ("/v1/embeddings", "input", 256)):
        assert post(worker, path, **{name: [5] * longest}).status_code == 200
        response = post(worker, path, **{name: [5] * (longest + 1)})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_the_figures_of_an_answer_add_up(worker):
    body = completions(worker, prompt=TEXTS[0], max_tokens=20)
    ours = body["paceline"]
    assert 0 < ours["accepted_tokens"] <= ours["drafted_tokens"]
    assert ours["accepted_tokens"] == sum(body["choices"][0]["paceline"]["drafted"])
    assert ours["mean_acceptance_length"] == pytest.approx(20 / (20 - ours["accepted_tokens"]))
    assert ours["queue_time"] + ours["prefill_time"] == pytest.approx(ours["time_to_first_token"])
    assert ours["decode_time"] == pytest.approx(19 * ours["time_per_output_token"])
    text = call(worker, "GET", "/metrics").text
    assert 'paceline:spec_decode_num_accepted_tokens_per_pos_total{model_name="scripted",position="3"}' in text
    assert 'paceline:kv_cache_usage_perc{model_name="scripted"} 0.0' in text


def test_what_does_not_fit_is_truncated_or_slides_and_is_told(worker):
    """The context of the model is 256 tokens; without a limit, a truncated prompt leaves half of it to the answer."""
    prompt = [int(token) for token in np.random.default_rng(4).integers(3, 300, size=300)]
    refused = post(worker, "/v1/completions", prompt=prompt, max_tokens=20)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert "this model's maximum context length is " in refused.json()["error"]["message"]
    truncated = completions(worker, prompt=prompt, max_tokens=20, context_overflow="truncate")
    short = completions(worker, prompt=prompt[-236:], max_tokens=20)
    assert truncated["choices"][0]["text"] == short["choices"][0]["text"]
    assert truncated["paceline"]["num_truncated_tokens"] == 64
    slid = completions(worker, prompt=prompt, max_tokens=120, context_overflow="slide")
    assert slid["usage"]["completion_tokens"] == 120
    assert (slid["paceline"]["num_slides"], slid["paceline"]["num_dropped_tokens"]) == (2, 256)
    body = {"prompt": prompt, "stream": True, "context_overflow": "slide", "max_tokens": 9}
    told = [event for event in events(post(worker, "/v1/completions", **body)) if isinstance(event, dict)]
    assert any(event.get("paceline", {}).get("num_slides") == 1 for event in told)
    chat = {"messages": [{"role": "user", "content": "a b c d " * 120}], "temperature": 0, "ignore_eos": True}
    unlimited = post(worker, "/v1/chat/completions", **chat, model="scripted", context_overflow="truncate").json()
    assert unlimited["paceline"]["num_truncated_tokens"] > 0
    assert unlimited["usage"]["completion_tokens"] == 128
    bad = post(worker, "/v1/completions", prompt=prompt, context_overflow="cut")
    assert bad.status_code == 400
