"""Under the ratio verifiers a seeded text hangs on its drafts alone: not on its company, chunks, pages or preemption.

It is not the text of plain decoding, and a step that leaves no room for a draft changes it: here all do.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from paceline.core.call import CallOptions
from paceline.core.errors import ConfigError
from paceline.core.params import SamplingParams
from paceline.engine.input_processor import InputProcessor
from tests.invariance.conftest import llama  # noqa: F401 - fixtures
from tests.invariance.test_controls import (
    drafter_forgets_the_token_after_its_last_draft,
    drafter_keeps_one_rejected_token,
)
from tests.support.cases import SAMPLING
from tests.support.engines import Hook, Job, Models, Tokens, cache_content, drive, preempt_every, prompts, run

SPECULATION: dict[str, dict[str, Any]] = {
    "near": {"method": "draft_model", "model": "near", "num_speculative_tokens": 3},
    "far": {"method": "draft_model", "model": "far", "num_speculative_tokens": 4},
    "ngram": {"method": "ngram", "prompt_lookup_min": 1, "prompt_lookup_max": 3},
    "suffix": {"method": "suffix"},
}
JOBS = [
    Job(prompt, SamplingParams(**controls, max_tokens=length, ignore_eos=True))
    for prompt, controls, length in zip(
        prompts(2, 61, [1, 9, 31, 14, 22]),
        [
            SAMPLING["greedy"],
            SAMPLING["seeded"],
            SAMPLING["penalties"],
            {"temperature": 1.0, "seed": 5, "n": 2},
            SAMPLING["min_p_bias"],
        ],
        (20, 12, 9, 13, 16),
        strict=True,
    )
]
by_verifier = pytest.mark.parametrize("verifier", ["token", "block"])
TREES: dict[str, dict[str, Any]] = {
    "drawn": {"method": "drawn_tree", "model": "near", "num_speculative_tokens": 2},
    "likeliest": {"method": "model_tree", "model": "near", "num_speculative_tokens": 3},
}
by_pair = pytest.mark.parametrize(
    ("verifier", "method"),
    [
        *itertools.product(["token", "block"], SPECULATION),
        ("tree", "drawn"),
        ("traversal", "drawn"),
        ("traversal", "likeliest"),
        ("tree", "ngram"),
    ],
)


def texts(
    models: Models, verifier: str, method: str, jobs: list[Job] = JOBS, hook: Hook | None = None, **options: Any
) -> list[Tokens]:
    engine = models.engine({**(SPECULATION | TREES)[method], "verifier": verifier}, **options)
    found = run(engine, jobs, hook=hook)
    assert engine.counters.num_accepted > 0 or len(jobs) == 1
    return found


@by_pair
def test_a_seed_repeats_its_text(verifier: str, method: str, llama: Models) -> None:  # noqa: F811
    together = texts(llama, verifier, method)
    assert texts(llama, verifier, method) == together
    for job, expected in zip(JOBS, together, strict=True):
        assert texts(llama, verifier, method, [job]) == [expected]


@by_pair
def test_memory_and_chunks_are_invisible(verifier: str, method: str, llama: Models) -> None:  # noqa: F811
    expected = texts(llama, verifier, method)
    for options in ({"block_size": 1}, {"cache": "static"}, {"cache": "none", "attention_backend": "reference"}):
        assert texts(llama, verifier, method, **options) == expected
    for chunk in (5, 10) if method in SPECULATION else ():  # each leaves room for a chain behind the last token
        assert texts(llama, verifier, method, JOBS[2:3], max_num_batched_tokens=chunk) == expected[2:3]
    assert texts(llama, verifier, method, hook=preempt_every(3), block_size=4) == expected


@by_verifier
def test_other_seeds_and_samples_give_other_texts(verifier: str, llama: Models) -> None:  # noqa: F811
    jobs = [
        Job(JOBS[1].prompt, SamplingParams(temperature=1.0, seed=seed, n=3, max_tokens=12, ignore_eos=True))
        for seed in range(4)
    ]
    found = [tuple(tokens) for members in texts(llama, verifier, "near", jobs) for tokens in members]
    assert len(set(found)) == 12


@by_pair
def test_greedy_texts_are_those_of_plain_decoding(verifier: str, method: str, llama: Models) -> None:  # noqa: F811
    jobs = [
        Job(job.prompt, SamplingParams(temperature=0.0, max_tokens=15, ignore_eos=True, **controls))
        for job, controls in zip(
            JOBS, [{}, {"repetition_penalty": 1.3}, {}, {"frequency_penalty": 0.7}, {}], strict=True
        )
    ]
    assert texts(llama, verifier, method, jobs) == run(llama.engine(), jobs)


@by_verifier
def test_calls_that_do_not_speculate_are_those_of_plain_decoding(verifier: str, llama: Models) -> None:  # noqa: F811
    """Also beside calls that do."""
    engine = llama.engine({**SPECULATION["near"], "verifier": verifier})
    processor = InputProcessor(engine, None)
    calls = [
        processor.group(list(job.prompt), job.params, options=CallOptions(speculate=number % 2 == 0))
        for number, job in enumerate(JOBS)
    ]
    for group in calls:
        engine.add(group)
    drive(engine, calls)
    expected = run(llama.engine(), JOBS)
    assert [[member.output_token_ids for member in group.members] for group in calls[1::2]] == expected[1::2]


@by_verifier
def test_logprobs_are_those_of_the_tokens(verifier: str, llama: Models) -> None:  # noqa: F811
    """Of the row each token came from: scoring the finished text as a prompt gives the same."""
    engine = llama.engine({**SPECULATION["far"], "verifier": verifier})
    processor = InputProcessor(engine, None)
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=15, logprobs=2, ignore_eos=True)
    call = processor.group(list(JOBS[2].prompt), params)
    engine.add(call)
    drive(engine, [call])
    (member,) = call.members
    scored = processor.group(
        [*JOBS[2].prompt, *member.output_token_ids], SamplingParams(prompt_logprobs=2, max_tokens=1)
    )
    engine.add(scored)
    drive(engine, [scored])
    expected = scored.prompt_logprobs[-15:]
    assert [entry.token_id for entry in member.logprobs] == member.output_token_ids
    assert [entry.logprob for entry in member.logprobs] == pytest.approx([entry.logprob for entry in expected])
    assert [entry.rank for entry in member.logprobs] == [entry.rank for entry in expected]
    assert 0 < member.num_accepted < member.num_drafted


def caches_hold_what_the_models_compute(models: Models, verifier: str) -> None:
    def content(engine: Any, _step: int) -> None:
        cache_content(engine, models.target, 0)
        cache_content(engine, models.drafts["near"], 1)

    texts(models, verifier, "near", hook=content, block_size=4)


@by_verifier
@pytest.mark.parametrize(
    "plant", [None, drafter_keeps_one_rejected_token, drafter_forgets_the_token_after_its_last_draft]
)
def test_cached_kv_equals_recomputed_kv(
    plant: Callable[[pytest.MonkeyPatch], None] | None,
    verifier: str,
    llama: Models,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A drafter's stale cache biases nothing, as its q is what it drew from; but it makes drafts worse."""
    caches_hold_what_the_models_compute(llama, verifier)
    if plant is not None:
        plant(monkeypatch)
        with pytest.raises((AssertionError, RuntimeError)):
            caches_hold_what_the_models_compute(llama, verifier)


@by_verifier
def test_trees_are_refused_at_the_start(verifier: str, llama: Models) -> None:  # noqa: F811
    refusal = "random_tree method drafts trees.*\n.*trees: match"
    with pytest.raises(ConfigError, match=refusal):
        llama.engine({"method": "random_tree", "verifier": verifier})
    for able in ("match", "tree", "traversal"):
        assert llama.engine({"method": "random_tree", "verifier": able})
