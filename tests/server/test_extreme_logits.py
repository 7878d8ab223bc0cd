"""Logits at and beyond the ends of float32: an answer's JSON has finite numbers, or the call fails by itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paceline.engine.worker import EngineWorker
from tests.support.calls import make
from tests.support.checkpoints import edit_json, tiny_gpt2, tiny_tokenizer
from tests.support.http_calls import assert_error, complete, events, post

SIZE = 320
HUGE, BEYOND = (3e38, 0.0), (3e38, 3e38)
"""What a token's logit is the sum of; that of ``BEYOND`` is infinite."""
FINITE = {
    "one of 3e38": ({7: HUGE}, 1),
    "one of 3e38, others of -3e38": ({7: HUGE}, -3e38),
    "one of infinity": ({7: BEYOND}, 1),
    "two of infinity": ({7: BEYOND, 9: BEYOND}, 1),
    "all of infinity": ({}, math.inf),
    "all of -3e38": ({}, -3e38),
    "all but one of -infinity": ({7: (1.0, 0.0)}, -math.inf),
}
BROKEN = {"all of -infinity": ({}, -math.inf), "infinity less infinity": ({7: (math.inf, -math.inf)}, 1)}
Serve = Callable[..., EngineWorker]


def save(path: Path, rows: dict[int, tuple[float, float]], other: float) -> None:
    """A model that has the same logits whatever it reads: those of ``rows``, and ``other`` of all other tokens."""
    tiny_gpt2(path, vocab_size=SIZE)
    tiny_tokenizer(path, vocab_size=SIZE)
    edit_json(path / "config.json", tie_word_embeddings=False)
    tensors = load_file(path / "model.safetensors")
    tensors["transformer.ln_f.weight"].zero_()
    tensors["transformer.ln_f.bias"].fill_(1.0)
    head = torch.zeros(SIZE, 32)
    sign = math.copysign(1.0, other)
    head[:, :2] = torch.tensor(BEYOND) * sign if math.isinf(other) else torch.tensor((other, 0.0))
    for token, parts in rows.items():
        head[token, :2] = torch.tensor(parts)
    tensors["lm_head.weight"] = head
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(params=["auto", "torch"])
def serve(request, tmp_path) -> Iterator[Serve]:
    workers = []

    def start(*logits) -> EngineWorker:
        save(tmp_path, *logits)
        workers.append(EngineWorker(make(tmp_path, dtype="float32", model_impl=request.param)))
        workers[-1].model_name = "scripted"
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


def refuse(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


def check_json(text: str) -> None:
    json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("name", FINITE)
@pytest.mark.parametrize("temperature", [0, 1])
def test_answers_are_finite_json(name, temperature, serve):
    worker = serve(*FINITE[name])
    common = {"max_tokens": 2, "ignore_eos": True, "temperature": temperature, "seed": 1}
    whole = post(worker, "/v1/completions", prompt=[5, 6, 7], echo=True, logprobs=3, **common)
    chat = complete(worker, logprobs=True, top_logprobs=2, **common)
    best = post(worker, "/v1/completions", prompt=[5, 6, 7], n=2, best_of=3, **common)
    for response in (whole, chat, best):
        assert response.status_code == 200, response.text
        check_json(response.text)
    entries = [entry["logprob"] for entry in chat.json()["choices"][0]["logprobs"]["content"]]
    echoed = whole.json()["choices"][0]["logprobs"]["token_logprobs"]
    assert echoed[0] is None
    assert all(-9999.0 <= value <= 0.0 for value in entries + echoed[1:])


@pytest.mark.parametrize("name", FINITE)
def test_streams_are_finite_json(name, serve):
    worker = serve(*FINITE[name])
    response = complete(worker, logprobs=True, top_logprobs=2, max_tokens=2, ignore_eos=True, stream=True)
    *chunks, last = events(response)
    assert last == "[DONE]"
    assert "error" not in json.dumps(chunks)
    check_json(json.dumps(chunks))


@pytest.mark.parametrize("name", BROKEN)
def test_rows_without_a_best_token_fail_their_call(name, serve):
    worker = serve(*BROKEN[name])
    for options in ({}, {"logprobs": 3}, {"logprobs": 3, "echo": True}, {"n": 2, "best_of": 3}):
        failed = post(worker, "/v1/completions", prompt=[5, 6, 7], max_tokens=2, **options)
        assert_error(failed, 500, code="generation_failed")
    only_read = post(worker, "/v1/completions", prompt=[5, 6, 7], max_tokens=0, logprobs=2, echo=True)
    check_json(only_read.text)
