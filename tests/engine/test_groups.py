"""Several answers of one call: independent samples over shared prompt pages; and log-probabilities of all kinds."""

from __future__ import annotations

import pytest

from paceline import LLM
from tests.support.calls import (
    answers,
    assert_idle,
    begin,
    finish,
    greedy,
    make,
    only,
    random_prompt,
    reference_logprobs,
    seeded,
    tokens_of,
)
from tests.support.engines import Models, preempt_every

PROMPT = random_prompt(9, 37)
NEAR = {"method": "draft_model", "model": "near"}


def test_members_differ_and_repeat_with_the_seed(llm: LLM, plain: LLM) -> None:
    (first,), (again,), (other) = (tokens_of(llm.generate(PROMPT, seeded(seed, n=4))) for seed in (1, 1, 2))
    assert len({tuple(tokens) for tokens in first}) == 4
    assert first == again
    assert first != other[0]
    assert first == tokens_of(plain.generate(PROMPT, seeded(1, n=4)))[0]


def test_the_first_members_do_not_depend_on_how_many_there_are(llm: LLM) -> None:
    few, many = (tokens_of(llm.generate(PROMPT, seeded(n=n)))[0] for n in (1, 5))
    assert many[:1] == few


def test_more_members_than_seats(checkpoints, plain: LLM) -> None:
    crowded = make(checkpoints.llama, checkpoints.near, max_num_seqs=2)
    assert tokens_of(crowded.generate(PROMPT, seeded(n=7))) == tokens_of(plain.generate(PROMPT, seeded(n=7)))
    assert_idle(crowded.engine)


@pytest.mark.parametrize("speculation", [None, NEAR], ids=["off", "near"])
@pytest.mark.parametrize("chunk", [8, 2048])
def test_members_share_the_prompts_pages(speculation, chunk, models: Models) -> None:
    """The pages before the last prompt token have a reference per member; the page that is written to is copied."""
    engine = models.engine(speculation, block_size=4, max_num_batched_tokens=chunk)
    group = begin(engine, PROMPT, seeded(n=3, max_tokens=10))
    most = 0

    def look() -> None:
        nonlocal most
        for layers in engine.cache.groups:
            seats = [member.seat for member in group.members if member.seat >= 0]
            tables = [layers.held_pages(seat) for seat in seats]
            shared = {page for table in tables for page in table if layers.pages.references[page] > 1}
            most = max(most, *layers.pages.references)
            if len(seats) == 3 and all(member.output_token_ids for member in group.members):
                assert shared == set(tables[0][: (len(PROMPT) - 1) // 4])

    found = finish(engine, [group], look)[0]
    assert most == 3
    alone = models.engine()
    assert found == finish(alone, [begin(alone, PROMPT, seeded(n=3, max_tokens=10))])[0]
    assert_idle(engine)


def test_one_member_ends_long_before_the_others(models: Models) -> None:
    """Its share of the pages goes back, theirs stay."""
    engine, plain = models.engine(NEAR, block_size=4), models.engine(cache="none")
    params = seeded(11, n=4, max_tokens=60, logit_bias={1: 4.0})
    expected = finish(plain, [begin(plain, PROMPT, params)])
    assert len({len(tokens) for tokens in expected[0]}) > 1
    assert finish(engine, [begin(engine, PROMPT, params)]) == expected
    assert_idle(engine)


def test_best_of_returns_the_likeliest(llm: LLM) -> None:
    (everything,) = llm.generate(PROMPT, seeded(n=6, logprobs=0))
    (best,) = llm.generate(PROMPT, seeded(n=2, best_of=6))
    ranked = sorted(everything.outputs, key=lambda answer: -answer.cumulative_logprob)
    assert [answer.token_ids for answer in best.outputs] == [answer.token_ids for answer in ranked[:2]]
    assert [answer.index for answer in best.outputs] == [0, 1]
    for answer, expected in zip(best.outputs, ranked, strict=False):
        assert answer.cumulative_logprob == pytest.approx(expected.cumulative_logprob, abs=1e-9)
        assert answer.logprobs is None


@pytest.mark.parametrize("params", [greedy(logprobs=5), seeded(logprobs=3, n=2, top_k=5, repetition_penalty=1.3)])
def test_logprobs_are_those_of_transformers(params, llm: LLM, checkpoints) -> None:
    """Of the unprocessed distribution, whatever the controls."""
    (output,) = llm.generate(PROMPT, params)
    for answer in output.outputs:
        everything = reference_logprobs(checkpoints.reference["llama"], PROMPT + answer.token_ids)
        for entry, row in zip(answer.logprobs, everything[len(PROMPT) - 1 :], strict=False):
            check(entry, row, params.logprobs)


def check(entry, row, count: int) -> None:
    assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=2e-4)
    assert entry.rank == 1 + int((row > row[entry.token_id]).sum())
    best = row.topk(max(count, 1))
    assert [token for token, _ in entry.top] == best.indices.tolist()[:count]
    assert [value for _, value in entry.top] == pytest.approx(best.values.tolist()[:count], abs=2e-4)


def check_prompt(found, prompt: list[int], reference, count: int = 2) -> None:
    everything = reference_logprobs(reference, prompt)
    assert len(found) == len(prompt)
    assert found[0] is None
    for token, entry, row in zip(prompt[1:], found[1:], everything, strict=False):
        assert entry.token_id == token
        check(entry, row, count)


@pytest.mark.parametrize("chunk", [5, 36, 37, 2048])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("drafter", [None, "near"])
def test_prompt_logprobs(chunk, n, drafter, checkpoints) -> None:
    draft = getattr(checkpoints, drafter) if drafter else None
    llm = make(checkpoints.llama, draft, max_num_batched_tokens=chunk)
    prompts = [PROMPT, random_prompt(10, 3), [7]]
    outputs = llm.generate(prompts, seeded(n=n, prompt_logprobs=2))
    for prompt, output in zip(prompts, outputs, strict=True):
        check_prompt(output.prompt_logprobs, prompt, checkpoints.reference["llama"])
    assert llm.generate(PROMPT, greedy())[0].prompt_logprobs is None


@pytest.mark.parametrize("speculation", [None, NEAR], ids=["off", "near"])
@pytest.mark.parametrize("period", [1, 2, 3])
def test_prompt_logprobs_under_preemption(period, speculation, models: Models, checkpoints) -> None:
    engine = models.engine(speculation, block_size=4, max_num_batched_tokens=16)
    group = begin(engine, PROMPT, seeded(n=3, prompt_logprobs=2, logprobs=0))
    preempt, steps = preempt_every(period, times=8), iter(range(1, 1000))
    finish(engine, [group], lambda: preempt(engine, next(steps)))
    assert sum(member.num_preemptions for member in group.members) >= 2
    check_prompt(group.prompt_logprobs, PROMPT, checkpoints.reference["llama"])
    alone = models.engine()
    assert answers(group) == finish(alone, [begin(alone, PROMPT, seeded(n=3))])[0]
    for member in group.members:
        assert [entry.token_id for entry in member.logprobs] == member.output_token_ids


def test_logprobs_of_answers_that_share_a_step(llm: LLM) -> None:
    """Only some of a batch ask; each gets its own."""
    wanted = [greedy(), greedy(logprobs=0), greedy(logprobs=4), seeded(best_of=2)]
    outputs = llm.generate([PROMPT] * 4, wanted)
    assert [output.outputs[0].logprobs is not None for output in outputs] == [False, True, True, False]
    assert [len(entry.top) for entry in outputs[2].outputs[0].logprobs] == [4] * 12
    alone = only(llm.generate(PROMPT, greedy(logprobs=0)))
    found = [entry.logprob for entry in outputs[1].outputs[0].logprobs]
    assert found == pytest.approx([entry.logprob for entry in alone.logprobs], abs=1e-9)
