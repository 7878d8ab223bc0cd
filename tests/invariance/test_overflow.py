"""A rolling window: what is dropped when is the same alone, batched, chunked, drafted, preempted and recomputed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from paceline.core.call import CallOptions
from paceline.core.params import SamplingParams
from paceline.core.request import Group, Request
from paceline.core.seats import Seats
from paceline.engine.engine import Engine
from paceline.engine.input_processor import InputProcessor
from paceline.scheduling.seating import Seating
from tests.support import proposers
from tests.support.engines import Hook, Job, Models, Tokens, cache_content, drive, preempt_every, prompts

CONTEXT = 16
SPECULATION: dict[str, dict[str, Any] | None] = {
    "off": None,
    "near": {"method": "draft_model", "model": "near", "num_speculative_tokens": 5},
    "far": {"method": "draft_model", "model": "far", "num_speculative_tokens": 3},
    "ngram": {"method": "ngram", "prompt_lookup_min": 1},
    "suffix": {"method": "suffix"},
    "token_recycling": {"method": "token_recycling"},
    "lookahead": {"method": "lookahead"},
    "tree": {"method": "random_tree", "model": "9"},
}
ENGINES: dict[str, dict[str, Any]] = {
    "whole": {},
    "page1": {"block_size": 1, "enable_prefix_caching": False},
    "chunks": {"block_size": 4, "max_num_batched_tokens": 7},
    "static": {"cache": "static"},
    "tight": {"block_size": 4, "num_blocks": 7, "max_num_batched_tokens": 16},
    "few seats": {"max_num_seqs": 2, "block_size": 4},
}
CASES = [
    *((speculation, options, "llama") for speculation in SPECULATION for options in ("chunks", "tight")),
    *(("near", options, "llama") for options in ("whole", "page1", "static", "few seats")),
    *((speculation, "whole", "gpt2") for speculation in ("off", "near", "tree")),
]


def jobs() -> list[Job]:
    """Prompts that fit, fill the context, and are longer than it; answers that outgrow it more than once."""
    controls: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 3, "n": 2},
        {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
        {"temperature": 0.9, "seed": 5, "top_k": 20, "presence_penalty": 0.6},
    ]
    lengths = (5, 15, 16, 41)
    made = prompts(31, 61, lengths)
    return [
        Job(prompt, SamplingParams(**control, max_tokens=26 - 4 * number, ignore_eos=True))
        for number, (prompt, control) in enumerate(zip(made, controls, strict=True))
    ]


def begin(engine: Engine, calls: Sequence[Job]) -> list[Group]:
    processor = InputProcessor(engine, None)
    options = CallOptions(context_overflow="slide")
    groups = [processor.group(list(job.prompt), job.params, options=options) for job in calls]
    for group in groups:
        engine.add(group)
    return groups


def run(engine: Engine, calls: Sequence[Job], hook: Hook | None = None) -> tuple[list[Tokens], list[Group]]:
    groups = begin(engine, calls)
    drive(engine, groups, hook)
    return [[member.output_token_ids for member in group.members] for group in groups], groups


_MODELS: dict[str, Models] = {}


@functools.cache
def oracle(family: str) -> list[Tokens]:
    """Token by token, each from a fresh call whose prompt is the window: no engine slides here."""
    engine = _MODELS[family].engine(cache="none", attention_backend="reference")
    return [[_rolling(engine, job, index) for index in range(job.params.num_samples)] for job in jobs()]


def _rolling(engine: Engine, job: Job, index: int) -> list[int]:
    """Drives one request by hand: its window is cut to the newest half context whenever it is full."""
    assert job.params.max_tokens is not None
    group = InputProcessor(engine, None).group(list(job.prompt[:1]), job.params)
    request = group.members[index]
    group.members = [request]
    group.prompt_token_ids = list(job.prompt)
    dropped = 0
    for _ in range(job.params.max_tokens):
        while request.num_tokens - dropped >= CONTEXT:
            dropped += CONTEXT // 2
        request.num_dropped = dropped
        request.finish_reason = None
        engine.scheduler.add(request)
        engine.step()
        if request.seat >= 0:
            engine.scheduler.remove(request)
    return request.output_token_ids


@pytest.mark.parametrize(("speculation", "options", "family"), CASES)
def test_sliding_is_a_function_of_the_count_alone(
    speculation: str, options: str, family: str, llama: Models, gpt2: Models
) -> None:
    models = _MODELS[family] = {"llama": llama, "gpt2": gpt2}[family]
    check(models, oracle(family), speculation, ENGINES[options], preempt_every(3) if options != "tight" else None)


def check(
    models: Models, expected: list[Tokens], speculation: str, options: dict[str, Any], hook: Hook | None = None
) -> None:
    for job, tokens in zip(jobs(), expected, strict=True):
        proposers.TRUTH.update({(job.prompt, index): sample for index, sample in enumerate(tokens)})
    engine = models.engine(SPECULATION[speculation], max_model_len=CONTEXT, **options)
    found, groups = run(engine, jobs(), hook)
    assert found == expected
    slides = [[(member.num_slides, member.num_dropped) for member in group.members] for group in groups]
    assert slides == [[(2, 16)], [(3, 24)] * 2, [(3, 24)], [(5, 40)]]
    if speculation in ("near", "tree") and options.get("max_num_batched_tokens", 99) > 9:
        assert engine.counters.num_accepted > 0


def drafts_go_past_a_full_window(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Seating._begin

    def begin(self: Seating, request: Request, source: Request | None) -> None:
        true(self, request, source)
        self.last_slot[request.seat] = int(self.seats.prompt_len[request.seat]) + request.max_new_tokens - 1

    monkeypatch.setattr(Seating, "_begin", begin)


def the_noise_starts_over_with_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Seats.refill

    def refill(self: Seats, seat: int) -> None:
        true(self, seat)
        self.prompt_len[seat] = max(0, self.prompt_len[seat])

    monkeypatch.setattr(Seats, "refill", refill)


def the_window_keeps_a_token_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Request.slide

    def slide(self: Request) -> bool:
        moved = true(self)
        self.num_dropped -= moved
        return moved

    monkeypatch.setattr(Request, "slide", slide)


@pytest.mark.parametrize(
    "plant",
    [drafts_go_past_a_full_window, the_noise_starts_over_with_the_window, the_window_keeps_a_token_too_many],
    ids=lambda plant: plant.__name__,
)
def test_planted_bugs_are_caught(plant: Callable[..., None], llama: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    _MODELS["llama"] = llama
    expected = oracle("llama")
    plant(monkeypatch)
    with pytest.raises((AssertionError, ValueError, IndexError)):
        check(llama, expected, "near", {})


def test_what_is_kept_is_computed_at_its_new_positions(llama: Models) -> None:
    engine = llama.engine(SPECULATION["near"], max_model_len=CONTEXT, block_size=4)

    def content(engine: Engine, _step: int) -> None:
        cache_content(engine, llama.target, 0)
        cache_content(engine, llama.drafts["near"], 1)

    _, groups = run(engine, jobs(), content)
    assert all(member.num_slides for group in groups for member in group.members)


def test_going_on_from_an_answer_is_not_having_stopped(llama: Models) -> None:
    """The window depends on prompt and answer together, so a text may be asked for in pieces."""
    prompt = prompts(5, 61, [9])[0]
    engine = llama.engine(max_model_len=CONTEXT)

    def greedy(tokens: Sequence[int], count: int) -> list[int]:
        params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
        return run(engine, [Job(tuple(tokens), params)])[0][0][0]

    whole = greedy(prompt, 40)
    for first in (1, 7, 8, 23):
        start = whole[:first]
        assert start + greedy([*prompt, *start], 40 - first) == whole


@pytest.mark.parametrize("speculation", ["off", "near"])
def test_dropped_tokens_still_count_as_history(speculation: str, llama: Models) -> None:
    """A penalty that forbids repeating forbids it for the whole text, not for what the window shows."""
    prompt = (7, 8, 9)
    bias = dict.fromkeys(range(61), 50.0)
    params = SamplingParams(temperature=0.0, repetition_penalty=1000.0, logit_bias=bias, max_tokens=50, ignore_eos=True)
    engine = llama.engine(SPECULATION[speculation], max_model_len=CONTEXT, block_size=4)
    found, (group,) = run(engine, [Job(prompt, params)], preempt_every(4))
    assert len({*prompt, *found[0][0]}) == 53
    assert group.members[0].num_slides > 3


def test_a_context_of_two_tokens_slides_in_every_step(llama: Models) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True)
    for speculation in ("off", "near"):
        engine = llama.engine(SPECULATION[speculation], max_model_len=2)
        found, (group,) = run(engine, [Job((5, 6, 7), params)])
        assert len(found[0][0]) == 9
        assert group.members[0].num_dropped == 3 + 9 - 2


@pytest.mark.parametrize("speculation", ["off", "near"])
def test_logprobs_are_those_of_the_window(speculation: str, llama: Models) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=30, logprobs=1, prompt_logprobs=1, ignore_eos=True)
    job = Job(prompts(3, 61, [9])[0], params)
    engine = llama.engine(SPECULATION[speculation], max_model_len=CONTEXT, block_size=4)
    _, (group,) = run(engine, [job])
    request = group.members[0]
    assert request.num_slides > 1
    assert [entry.token_id for entry in request.logprobs] == request.output_token_ids
    assert all(entry.rank == 1 for entry in request.logprobs)
    assert group.prompt_logprobs is not None
    assert [entry and entry.token_id for entry in group.prompt_logprobs] == [None, *job.prompt[1:]]
    _, (fitting,) = run(llama.engine(), [job])
    assert fitting.prompt_logprobs is not None
    for entry, wanted in zip(group.prompt_logprobs[1:], fitting.prompt_logprobs[1:], strict=True):
        assert entry is not None
        assert wanted is not None
        assert entry.logprob == pytest.approx(wanted.logprob, abs=1e-9)
