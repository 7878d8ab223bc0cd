"""What becomes of calls that the context cannot hold is chosen, exact, and told; and what can never fit is refused."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import replace
from typing import Any

import pytest

from paceline import LLM, ConfigError, InvalidRequestError, SamplingParams
from paceline.core.call import CallOptions
from paceline.engine.input_processor import InputProcessor
from paceline.engine.overflow import Admission, Ask, context_overflows
from paceline.engine.worker import EngineWorker
from tests.support.calls import assert_idle, begin, finish, greedy, make, only, random_prompt, seeded, tokens_of
from tests.support.engines import Models

CONTEXT = 32
NEAR = {"method": "draft_model", "model": "near", "num_speculative_tokens": 4}
LONG = random_prompt(3, 70)


@pytest.fixture(scope="module")
def small(checkpoints) -> LLM:
    return make(checkpoints.llama, checkpoints.near, max_model_len=CONTEXT, block_size=4)


def ask(**more: Any) -> Ask:
    given = {"num_prompt": 10, "max_tokens": 5, "min_tokens": 0, "context": 32, "longest": 32}
    return Ask(**{**given, "needs_whole_prompt": False, **more})


@pytest.mark.parametrize(
    ("name", "call", "expected"),
    [
        ("error", {}, Admission(max_new_tokens=5)),
        ("error", {"max_tokens": 40}, Admission(max_new_tokens=22)),
        ("error", {"max_tokens": None, "longest": 28}, Admission(max_new_tokens=18)),
        ("truncate", {}, Admission(max_new_tokens=5)),
        ("truncate", {"num_prompt": 27}, Admission(max_new_tokens=5)),
        ("truncate", {"num_prompt": 28}, Admission(max_new_tokens=5, num_truncated_tokens=1)),
        ("truncate", {"num_prompt": 90, "longest": 20}, Admission(max_new_tokens=5, num_truncated_tokens=75)),
        ("truncate", {"max_tokens": 31}, Admission(max_new_tokens=31, num_truncated_tokens=9)),
        ("truncate", {"num_prompt": 31, "max_tokens": None}, Admission(max_new_tokens=1)),
        ("truncate", {"num_prompt": 32, "max_tokens": None}, Admission(max_new_tokens=16, num_truncated_tokens=16)),
        (
            "truncate",
            {"num_prompt": 31, "max_tokens": None, "min_tokens": 20},
            Admission(max_new_tokens=20, num_truncated_tokens=19),
        ),
        ("truncate", {"num_prompt": 40, "max_tokens": 0}, Admission(max_new_tokens=0, num_truncated_tokens=8)),
        ("slide", {}, Admission(max_new_tokens=5)),
        ("slide", {"max_tokens": 22}, Admission(max_new_tokens=22)),
        ("slide", {"max_tokens": 23}, Admission(max_new_tokens=23, sliding_context=32)),
        ("slide", {"num_prompt": 400}, Admission(max_new_tokens=5, sliding_context=32)),
        ("slide", {"needs_whole_prompt": True, "max_tokens": 99}, Admission(max_new_tokens=99, sliding_context=32)),
    ],
)
def test_admissions(name: str, call: dict[str, Any], expected: Admission) -> None:
    assert context_overflows[name].admit(ask(**call)) == expected


@pytest.mark.parametrize(
    ("name", "call", "field", "number"),
    [
        ("error", {"num_prompt": 32}, "prompt", "at most 31 tokens"),
        ("error", {"num_prompt": 33, "max_tokens": 0}, "prompt", "at most 32 tokens"),
        ("error", {"min_tokens": 23, "max_tokens": None}, "min_tokens", "at most 22"),
        ("truncate", {"max_tokens": 32}, "max_tokens", "at most 31"),
        ("truncate", {"max_tokens": None, "min_tokens": 32}, "min_tokens", "at most 31"),
        ("slide", {"max_tokens": None}, "max_tokens", "for example to 32"),
        ("slide", {"num_prompt": 32, "needs_whole_prompt": True}, "prompt_logprobs", "at most 31 tokens"),
        ("slide", {"num_prompt": 33, "max_tokens": 0}, "prompt", "at most 32 tokens"),
    ],
)
def test_refusals_name_the_field_and_the_number(name: str, call: dict[str, Any], field: str, number: str) -> None:
    with pytest.raises(InvalidRequestError, match=number) as caught:
        context_overflows[name].admit(ask(**call))
    assert caught.value.param == field


@pytest.mark.parametrize("value", ["cut", 3, True, ["slide"]], ids=str)
def test_unknown_names(value: Any, small: LLM, checkpoints) -> None:
    with pytest.raises(InvalidRequestError, match="error, truncate, slide") as caught:
        small.generate(LONG, greedy(), context_overflow=value)
    assert caught.value.param == "context_overflow"
    with pytest.raises(ConfigError, match="context_overflow"):
        make(checkpoints.llama, context_overflow=value)


def test_by_default_nothing_is_dropped(small: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="maximum context length is 32 tokens, the prompt has 70") as caught:
        small.generate(LONG, greedy())
    assert caught.value.code == "context_length_exceeded"
    (output,) = small.generate(LONG[:20], greedy(max_tokens=40, ignore_eos=True))
    assert only([output]).finish_reason == "length"
    assert len(only([output]).token_ids) == 12
    metrics = output.metrics
    assert (output.num_truncated_tokens, metrics.num_truncated_tokens, metrics.num_slides) == (0, 0, 0)


@pytest.mark.parametrize("params", [greedy(), seeded(n=3), greedy(repetition_penalty=1.4)], ids=["greedy", "n", "pen"])
def test_a_truncated_prompt_is_its_newest_tokens(params: SamplingParams, small: LLM) -> None:
    """Everything is as if only those had been given, and the number of the others is told."""
    (cut,) = small.generate(LONG, params, context_overflow="truncate")
    (short,) = small.generate(LONG[-20:], params)
    assert tokens_of([cut]) == tokens_of([short])
    assert cut.prompt_token_ids == LONG[-20:]
    assert cut.num_truncated_tokens == cut.metrics.num_truncated_tokens == 50
    assert short.num_truncated_tokens == 0
    assert all(answer.num_dropped_tokens == 0 for answer in cut.outputs)
    assert_idle(small.engine)


def test_truncated_prompts_have_logprobs_and_share_prefixes(small: LLM) -> None:
    params = greedy(prompt_logprobs=1)
    (first,) = small.generate(LONG, params, context_overflow="truncate", cache_salt="own")
    assert first.prompt_logprobs is not None
    assert len(first.prompt_logprobs) == 20
    assert [entry.token_id for entry in first.prompt_logprobs[1:] if entry] == LONG[-19:]
    (again,) = small.generate(LONG, greedy(), context_overflow="truncate", cache_salt="own")
    assert again.metrics.num_cached_tokens == 16  # four of five pages; the last token is always computed


def test_a_truncated_text_keeps_its_prompt(small: LLM) -> None:
    text = "hello there " * 30
    (output,) = small.generate(text, greedy(), context_overflow="truncate")
    assert output.prompt == text
    assert len(output.prompt_token_ids) == 20
    assert output.num_truncated_tokens > 0


def test_embeddings_of_truncated_prompts(checkpoints) -> None:
    llm = make(checkpoints.llama, max_model_len=CONTEXT, context_overflow="truncate")
    (cut,), (short,) = llm.embed(LONG), llm.embed(LONG[-32:])
    assert cut.embedding == pytest.approx(short.embedding, abs=1e-12)
    assert cut.num_truncated_tokens == 70 - 32


def test_the_engines_option_holds_unless_a_call_says_otherwise(checkpoints, small: LLM) -> None:
    sliding = make(checkpoints.llama, max_model_len=CONTEXT, context_overflow="slide")
    (output,) = sliding.generate(LONG, greedy(max_tokens=40, ignore_eos=True))
    (same,) = small.generate(LONG, greedy(max_tokens=40, ignore_eos=True), context_overflow="slide")
    assert tokens_of([output]) == tokens_of([same])
    with pytest.raises(InvalidRequestError, match="maximum context length is 32 tokens"):
        sliding.generate(LONG, greedy(), context_overflow="error")
    with pytest.raises(InvalidRequestError, match="max_tokens"):
        sliding.generate([5], greedy(max_tokens=None))


def test_slides_are_told(small: LLM) -> None:
    """70 prompt and 40 output tokens: of 110 the last window shows those since the 96th."""
    (output,) = small.generate(LONG, seeded(max_tokens=40, n=2, ignore_eos=True), context_overflow="slide")
    assert output.prompt_token_ids == LONG
    assert [(answer.num_slides, answer.num_dropped_tokens) for answer in output.outputs] == [(5, 80)] * 2
    assert (output.metrics.num_slides, output.metrics.num_dropped_tokens) == (10, 160)
    assert output.num_truncated_tokens == 0
    assert [len(answer.token_ids) for answer in output.outputs] == [40, 40]
    assert_idle(small.engine)


def test_streams_tell_too(checkpoints) -> None:
    worker = EngineWorker(make(checkpoints.llama, max_model_len=CONTEXT))

    async def metrics_of(name: str) -> Any:
        options = CallOptions(context_overflow=name)
        stream = worker.generate(LONG, greedy(max_tokens=9), request_id=name, options=options)
        return [update async for update in stream][-1].metrics

    try:
        truncated, slid = asyncio.run(metrics_of("truncate")), asyncio.run(metrics_of("slide"))
    finally:
        worker.close()
    assert (truncated.num_truncated_tokens, truncated.num_slides) == (47, 0)
    assert (slid.num_truncated_tokens, slid.num_slides, slid.num_dropped_tokens) == (0, 3, 48)


@pytest.mark.parametrize("end", ["stop string", "stop token"])
def test_a_sliding_answer_still_stops(end: str, small: LLM) -> None:
    (whole,) = small.generate(LONG, seeded(8, max_tokens=60, ignore_eos=True), context_overflow="slide")
    tokens = only([whole]).token_ids
    place = next(n for n, token in enumerate(tokens) if n > 30 and token not in tokens[:n])
    stop: dict[str, Any] = {"stop_token_ids": [tokens[place]]}
    if end == "stop string":
        text = only([whole]).text
        tail = next(text[n : n + 6] for n in range(len(text) // 2, len(text)) if text.find(text[n : n + 6]) == n)
        stop = {"stop": tail}
    (cut,) = small.generate(LONG, seeded(8, max_tokens=60, ignore_eos=True, **stop), context_overflow="slide")
    answer = only([cut])
    assert answer.finish_reason == "stop"
    assert answer.token_ids == tokens[: len(answer.token_ids)]
    assert answer.num_slides > 0


@pytest.fixture(scope="module")
def windowed(models: Models) -> Models:
    """Every layer sees 7 tokens."""
    target, near = copy.copy(models.target), copy.copy(models.drafts["near"])
    for model in (target, near):
        model.layer_specs = tuple(replace(spec, window=7) for spec in model.layer_specs)
    return Models(target, {"near": near})


@pytest.mark.parametrize("speculation", [None, NEAR], ids=["off", "near"])
@pytest.mark.parametrize("block_size", [1, 3, 4])
@pytest.mark.parametrize("budget", [1, 5, 16])
def test_windows_need_pages_for_a_step_and_what_it_sees(
    budget: int, block_size: int, speculation: Any, windowed: Models
) -> None:
    """With one page fewer than enough the call is refused, with as many as the error names it runs to its end."""
    options: dict[str, Any] = {"block_size": block_size, "max_num_batched_tokens": budget}
    short = InputProcessor(windowed.engine(speculation, num_blocks=1, **options), None)
    prompt, params = random_prompt(5, 40), greedy(max_tokens=30, ignore_eos=True)
    with pytest.raises(InvalidRequestError, match="set num_blocks to at least") as caught:
        short.group(prompt, params)
    enough = int(str(caught.value).rpartition(" ")[2].rstrip("."))
    engine = windowed.engine(speculation, num_blocks=enough, **options)
    assert len(finish(engine, [begin(engine, prompt, params)])[0][0]) == 30
    with pytest.raises(InvalidRequestError, match=f"set num_blocks to at least {enough}"):
        InputProcessor(windowed.engine(speculation, num_blocks=enough - 1, **options), None).group(prompt, params)
    assert enough * block_size < 70


@pytest.mark.parametrize("speculation", [None, NEAR], ids=["off", "near"])
@pytest.mark.parametrize("cache", ["paged", "static", "none"])
@pytest.mark.parametrize("overflow", ["error", "truncate", "slide"])
def test_what_is_taken_in_runs_to_its_end(overflow: str, cache: str, speculation: Any, models: Models) -> None:
    """A pool of exactly one context, or one page less than it."""
    options: dict[str, Any] = {"cache": cache, "block_size": 4, "max_model_len": CONTEXT}
    full = {"paged": CONTEXT // 4, "static": 1, "none": CONTEXT // 4}[cache]
    engine = models.engine(speculation, num_blocks=full, max_num_batched_tokens=16, **options)
    prompt, params = LONG[:24], greedy(max_tokens=40 if overflow == "slide" else 8, ignore_eos=True)
    call = CallOptions(context_overflow=overflow)
    groups = [begin(engine, prompt, params, options=call) for _ in range(2)]
    found = finish(engine, groups)
    assert found[0] == found[1]
    assert len(found[0][0]) == params.max_tokens
    assert_idle(engine)
    if cache == "static":
        return
    engine = models.engine(speculation, num_blocks=full - 1, **options)
    if overflow == "truncate":
        group = begin(engine, prompt, params, options=call)
        assert group.num_truncated_tokens == 4
        finish(engine, [group])
        return
    with pytest.raises(InvalidRequestError, match=r"max_tokens to at most 4|num_blocks to at least 8"):
        begin(engine, prompt, params, options=call)
