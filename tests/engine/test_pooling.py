"""Embeddings: those of transformers, whatever else runs and however the prompt is cut."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch

from paceline import LLM, InvalidRequestError, SamplingParams
from paceline.core.call import CallOptions
from paceline.engine.worker import EngineWorker
from paceline.scheduling import Scheduler
from tests.support.calls import assert_idle, begin, finish, greedy, make, random_prompt, seeded, tokens_of
from tests.support.engines import Models, preempt_every

PROMPTS = [random_prompt(seed, length) for seed, length in ((1, 1), (2, 16), (3, 37), (4, 60))]


def embeddings(outputs) -> np.ndarray:
    return np.array([output.embedding for output in outputs])


def expected(model, prompt: list[int], pooling: str) -> np.ndarray:
    with torch.inference_mode():
        states = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0]
    vector = {"mean": states.mean(0), "last": states[-1]}[pooling]
    return (vector / vector.norm()).numpy()


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_embeddings_are_those_of_transformers(family, pooling, checkpoints) -> None:
    outputs = make(getattr(checkpoints, family)).embed(PROMPTS, pooling=pooling)
    wanted = [expected(checkpoints.reference[family], prompt, pooling) for prompt in PROMPTS]
    # transformers computes norms in float32 whatever the model's type is.
    np.testing.assert_allclose(embeddings(outputs), wanted, atol=1e-6)
    assert all(isinstance(value, float) for value in outputs[0].embedding)
    assert [(output.outputs[0].token_ids, output.outputs[0].finish_reason) for output in outputs] == [([], "stop")] * 4


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize(
    "options",
    [{}, {"max_num_batched_tokens": 7}, {"max_num_seqs": 1}, {"block_size": 4}, {"cache": "none"}, {"cache": "static"}],
    ids=str,
)
def test_batching_and_chunks_are_invisible(pooling, options, checkpoints, plain: LLM) -> None:
    llm = make(checkpoints.llama, checkpoints.near, **options)
    alone = [plain.embed(prompt, pooling=pooling)[0].embedding for prompt in PROMPTS]
    for _ in range(2):  # the second time, pages of the prompts are in the prefix index
        np.testing.assert_allclose(embeddings(llm.embed(PROMPTS, pooling=pooling)), alone, atol=1e-9)
    assert_idle(llm.engine)


def test_a_cached_prefix_saves_work_only_where_its_rows_do_not_count(checkpoints) -> None:
    llm = make(checkpoints.llama, block_size=4)
    llm.generate(PROMPTS[2], greedy())
    (last,) = llm.embed(PROMPTS[2], pooling="last")
    (mean,) = llm.embed(PROMPTS[2], pooling="mean")
    assert (last.metrics.num_cached_tokens, mean.metrics.num_cached_tokens) == (36, 0)


def embed_beside_answers(models: Models, period: int) -> tuple[list[list[float] | None], list[list[list[int]]]]:
    """Embeddings and answers in one batch, with forced preemptions."""
    engine = models.engine({"method": "ngram"}, max_num_batched_tokens=11, block_size=4)
    hook, steps = preempt_every(period, times=12), iter(range(1, 10**6))
    pooled = [
        begin(engine, prompt, SamplingParams(), options=CallOptions(pooling=pooling))
        for prompt, pooling in zip(PROMPTS, ["mean", "last"] * 3, strict=False)
    ]
    generating = [begin(engine, prompt, seeded(5)) for prompt in PROMPTS[:3]]
    found = finish(engine, [*pooled, *generating], lambda: hook(engine, next(steps)))
    assert engine.scheduler.num_preemptions > 0
    assert_idle(engine)
    return [group.pooled.embedding for group in pooled], found[len(pooled) :]


@pytest.mark.parametrize("period", [1, 3])
def test_embeddings_and_answers_share_steps_and_outlive_preemption(period, models: Models, plain: LLM) -> None:
    found, texts = embed_beside_answers(models, period)
    alone = [
        plain.embed(prompt, pooling=pooling)[0].embedding
        for prompt, pooling in zip(PROMPTS, ["mean", "last"] * 3, strict=False)
    ]
    np.testing.assert_allclose(np.array(found), alone, atol=1e-9)
    assert texts == tokens_of(plain.generate(PROMPTS[:3], seeded(5)))


def test_rows_counted_twice_would_be_seen(models: Models, plain: LLM, monkeypatch) -> None:
    """The control of the test above: a preemption after which all rows are added again."""
    honest = Scheduler.preempt

    def forgetful(self, request):
        if request.group.pooled is not None:
            request.group.pooled.next_row = 0
        honest(self, request)

    monkeypatch.setattr(Scheduler, "preempt", forgetful)
    found, _ = embed_beside_answers(models, 3)
    alone = [plain.embed(prompt)[0].embedding for prompt in PROMPTS[2::2]]
    assert not np.allclose(np.array(found[2::2]), alone, atol=1e-4)


def test_nan_fails_the_embedding_and_nobody_else(checkpoints, plain: LLM) -> None:
    llm = make(checkpoints.llama)
    bad = PROMPTS[2][5]
    with torch.no_grad():
        llm.engine.runner.model.embedding.tokens.weight[bad] = torch.nan
    good = next(prompt for prompt in ([9] * 4, [8] * 4, [7] * 4) if bad not in prompt)
    broken, fine = llm.embed([PROMPTS[2], good])
    assert (broken.embedding, broken.outputs[0].finish_reason) == (None, "error")
    np.testing.assert_allclose(fine.embedding, plain.embed(good)[0].embedding, atol=1e-9)
    assert_idle(llm.engine)


@pytest.mark.parametrize(
    ("prompt", "pooling", "param"),
    [([], "mean", "prompt"), ([5] * 129, "mean", "prompt"), ([5], "max", "pooling"), ([5], 3, "pooling")],
)
def test_what_cannot_be_embedded(prompt, pooling, param, plain: LLM) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        plain.embed([prompt], pooling=pooling)
    assert caught.value.param == param
    with pytest.raises(InvalidRequestError, match="embedding"):
        plain.input_processor.group([5], SamplingParams(n=2), options=CallOptions(pooling="mean"))


def test_streams_carry_embeddings_prompt_logprobs_and_token_times(checkpoints) -> None:
    worker = EngineWorker(make(checkpoints.llama, checkpoints.near))

    async def updates(params, **options):
        stream = worker.generate(PROMPTS[2], params, request_id="r", options=CallOptions(**options))
        return [update async for update in stream]

    try:
        (only,) = asyncio.run(updates(SamplingParams(), pooling="mean"))
        first, *rest = asyncio.run(updates(seeded(n=2, prompt_logprobs=1)))
    finally:
        worker.close()
    assert only.embedding == worker.llm.embed(PROMPTS[2])[0].embedding
    assert (only.deltas[0].finish_reason, only.metrics.num_decode_steps) == ("stop", 0)
    (whole,) = worker.llm.generate(PROMPTS[2], seeded(n=2, prompt_logprobs=1))
    assert first.prompt_logprobs == whole.prompt_logprobs
    assert all(update.prompt_logprobs is None for update in rest)
    metrics = (first, *rest)[-1].metrics  # on a loaded machine one update may hold all
    times = [[at for u in (first, *rest) for d in u.deltas if d.index == i for at in d.token_times] for i in range(2)]
    assert all(len(mine) == 12 and mine == sorted(mine) for mine in times)
    assert min(times[0][0], times[1][0]) == pytest.approx(metrics.time_to_first_token)
    assert max(times[0][-1], times[1][-1]) == pytest.approx(metrics.e2e_time)
    assert metrics.queue_time + metrics.prefill_time + metrics.decode_time == pytest.approx(metrics.e2e_time)
