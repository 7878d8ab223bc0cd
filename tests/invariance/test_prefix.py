"""A prefix that was found instead of computed is invisible in the tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paceline.cache.prefix import LruPrefixIndex
from paceline.core.params import SamplingParams
from paceline.engine.engine import Engine
from paceline.engine.intake import Intake
from tests.invariance.engines import Job, Models, cache_content, drive, preempt_every, prompts, run

SHARED = prompts(21, 61, [26])[0]


def jobs() -> list[Job]:
    """Calls that share 26 tokens, then differ; some share all but the last token."""
    tails = [(), (7,), (7, 8, 9), tuple(range(5, 25)), (7, 8, 9, 10, 11)]
    controls = [{"temperature": 0.0}, {"temperature": 1.0, "seed": 4}, {"temperature": 0.9, "seed": 5, "top_k": 9}]
    return [
        Job((*SHARED, *tail), SamplingParams(**controls[number % 3], max_tokens=9, ignore_eos=True, n=1 + number % 2))
        for number, tail in enumerate(tails)
    ]


@pytest.mark.parametrize("method", [None, "near", "ngram"])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_hits_are_invisible(method: str | None, block_size: int, llama: Models) -> None:
    expected = run(llama.engine(enable_prefix_caching=False), jobs())
    speculation = {"near": {"method": "draft_model", "model": "near"}, "ngram": {"method": "ngram"}}.get(method or "")
    engine = llama.engine(speculation, block_size=block_size)
    first = run(engine, jobs())
    hits = engine.cache.num_prefix_hits

    def content(engine: Engine, _step: int) -> None:
        cache_content(engine, llama.target, 0)
        if method == "near":
            cache_content(engine, llama.drafts["near"], 1)

    assert run(engine, jobs(), hook=content) == first == expected
    assert engine.cache.num_prefix_hits > hits


@pytest.mark.parametrize("num_blocks", [16, 24, 40])
def test_a_pool_that_must_evict_and_preempt(num_blocks: int, llama: Models) -> None:
    expected = run(llama.engine(enable_prefix_caching=False), jobs() * 2)
    speculation = {"method": "draft_model", "model": "near"}
    engine = llama.engine(speculation, block_size=4, num_blocks=num_blocks, max_num_batched_tokens=16)
    assert run(engine, jobs() * 2, hook=preempt_every(5)) == expected
    assert engine.cache.num_prefix_hits > 0


def _cached_tokens(engine: Engine, job: Job, salt: str = "") -> int:
    group = Intake(engine, None).group(list(job.prompt), job.params)
    group.cache_salt = salt
    engine.add(group)
    drive(engine, [group])
    return group.members[0].num_cached_tokens


def test_calls_report_what_they_did_not_compute(llama: Models) -> None:
    engine = llama.engine(block_size=4)
    job = Job(SHARED, SamplingParams(temperature=0.0, max_tokens=3))
    assert _cached_tokens(engine, job) == 0
    assert _cached_tokens(engine, job) == 24  # six whole pages of 26 tokens
    assert _cached_tokens(engine, replace(job, prompt=SHARED[:24])) == 20  # one token is always computed


def test_another_salt_shares_nothing(llama: Models) -> None:
    engine = llama.engine(block_size=4)
    job = Job(SHARED, SamplingParams(temperature=0.0, max_tokens=3))
    assert _cached_tokens(engine, job, "alice") == 0
    assert _cached_tokens(engine, job, "bob") == 0
    assert _cached_tokens(engine, job, "alice") == 24


def test_prompt_logprobs_compute_every_row(llama: Models) -> None:
    engine = llama.engine(block_size=4)
    job = Job(SHARED, SamplingParams(temperature=0.0, max_tokens=3, prompt_logprobs=1))
    assert _cached_tokens(engine, job) == 0
    assert _cached_tokens(engine, job) == 0


def test_an_index_that_ignores_the_prefix_is_caught(llama: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: a page is found by its own tokens, whatever came before them."""
    turned = [Job((*SHARED[4:8], *SHARED), job.params) for job in jobs()[:1]] + jobs()
    expected = run(llama.engine(enable_prefix_caching=False), turned)
    assert run(llama.engine(block_size=4, max_num_seqs=1), turned) == expected
    monkeypatch.setattr(LruPrefixIndex, "_key", lambda self, _, salt, tokens, at: (salt, tokens[at : at + 4].tobytes()))
    with pytest.raises(AssertionError):
        assert run(llama.engine(block_size=4, max_num_seqs=1), turned) == expected
