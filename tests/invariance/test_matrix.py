"""Speculation, batching, chunking, page size, cache kind and preemption are invisible in the tokens."""

from __future__ import annotations

import functools

import pytest

from paceline.core.call import CallOptions
from paceline.core.params import SamplingParams
from tests.invariance.conftest import VOCAB_SIZE
from tests.support import proposers
from tests.support.cases import FACTORS, SAMPLING, SPECULATION, Case, covering_array, full_product
from tests.support.engines import Job, Models, Tokens, cache_content, preempt_every, prompts, run
from tests.support.methods import METHODS

HOST = ("suffix", "token_recycling", "lookahead")
STAGES = tuple(name for name in METHODS if name in SPECULATION and name not in ("ngram", *HOST))
PROMPT = prompts(1, VOCAB_SIZE, [23])[0]

OTHERS = [
    Job(prompt, SamplingParams(**controls, max_tokens=length, ignore_eos=True))
    for prompt, controls, length in zip(
        prompts(2, VOCAB_SIZE, [1, 9, 31, 14]),
        (SAMPLING["greedy"], SAMPLING["seeded"], SAMPLING["penalties"], {"temperature": 1.0, "seed": 5, "n": 2}),
        (20, 9, 6, 13),
        strict=True,
    )
]


@functools.cache
def plain(models_id: str, sampling: str, n: int) -> Tokens:
    """The oracle: alone, unspeculated, recomputing everything in every step, with the spelled-out attention."""
    models = _MODELS[models_id]
    engine = models.engine(cache="none", attention_backend="reference")
    params = SamplingParams(**SAMPLING[sampling], n=n, max_tokens=14)
    return run(engine, [Job(PROMPT, params)])[0]


_MODELS: dict[str, Models] = {}


def check(case: Case, models: Models) -> None:
    """Runs a case and compares its tokens with the oracle's."""
    _MODELS[case.family] = models
    expected = plain(case.family, case.sampling, case.n)
    for index, tokens in enumerate(expected):
        proposers.TRUTH[PROMPT, index] = tokens
    engine = models.engine(case.speculative_config(), **case.engine_options())
    jobs = [Job(PROMPT, case.params())] + (OTHERS if case.batch == "mixed" else [])
    found = run(engine, jobs, hook=preempt_every(case.preempt) if case.preempt else None)
    assert found[0] == expected


@pytest.mark.parametrize("case", [case for seed in range(2) for case in covering_array(seed)], ids=str)
def test_every_pair_of_factors(case: Case, llama: Models, gpt2: Models) -> None:
    check(case, {"llama": llama, "gpt2": gpt2}[case.family])


@pytest.mark.full
@pytest.mark.parametrize("family", FACTORS["family"])
@pytest.mark.parametrize("cache", FACTORS["cache"])
@pytest.mark.parametrize("speculation", FACTORS["speculation"])
def test_full_product(speculation: str, cache: str, family: str, llama: Models, gpt2: Models) -> None:
    for case in full_product(speculation=speculation, cache=cache, family=family):
        check(case, {"llama": llama, "gpt2": gpt2}[family])


@pytest.mark.parametrize("speculation", ["near", "far", "features", "ngram", *HOST, *STAGES, "tree", "big_tree"])
def test_drafts_are_sometimes_right_and_sometimes_wrong(speculation: str, llama: Models) -> None:
    """Without this the matrix could pass because nothing was ever accepted, or nothing ever rejected."""
    case = Case(speculation, 4, "mixed", 2048, "page4", 0, "greedy", 1, "sdpa", "llama")
    check(case, llama)
    engine = llama.engine(case.speculative_config(), **case.engine_options())
    run(engine, [Job(PROMPT, case.params()), *OTHERS])
    assert 0 < engine.counters.num_accepted < engine.counters.num_drafted


@pytest.mark.parametrize("speculation", ["off", "near", "far", *HOST, *STAGES, "tree", "big_tree"])
@pytest.mark.parametrize("cache", ["page1", "page4", "static"])
def test_cached_kv_equals_recomputed_kv(speculation: str, cache: str, llama: Models) -> None:
    """After every step, in the target's and the drafter's groups: what is called cached is what the model computes."""
    case = Case(speculation, 4, "mixed", 16, cache, 0, "seeded", 3, "sdpa", "llama")
    engine = llama.engine(case.speculative_config(), **case.engine_options())

    def content(engine, _step) -> None:
        cache_content(engine, llama.target, 0)
        if engine.proposer is not None and engine.proposer.model in llama.drafts.values():
            cache_content(engine, engine.proposer.model, 1)

    run(engine, [Job(PROMPT, case.params()), *OTHERS], hook=content)


def test_float32_where_margins_allow(llama: Models) -> None:
    """In float32 a row's logits depend on its neighbours by rounding only, which these margins absorb."""
    single = Models(llama.target.float(), {name: model.float() for name, model in llama.drafts.items()})
    try:
        expected = run(single.engine(), [Job(PROMPT), *OTHERS])
        for speculation in ("near", "ngram", *HOST, "tree"):
            case = Case(speculation, 4, "mixed", 16, "page4", 0, "greedy", 1, "sdpa", "llama")
            engine = single.engine(case.speculative_config(), **case.engine_options())
            assert run(engine, [Job(PROMPT), *OTHERS], hook=preempt_every(4)) == expected
    finally:
        for model in (llama.target, *llama.drafts.values()):
            model.double()


def test_turning_speculation_off_per_call_gives_the_same_tokens(llama: Models) -> None:
    engine = llama.engine({"method": "draft_model", "model": "near"})
    with_draft = run(engine, OTHERS)
    assert engine.counters.num_accepted > 0
    drafted = engine.counters.num_drafted
    assert run(engine, OTHERS, speculate=False) == with_draft
    assert engine.counters.num_drafted == drafted


def test_sharing_a_step_with_calls_that_do_not_speculate(llama: Models) -> None:
    engine = llama.engine({"method": "draft_model", "model": "near"})
    from paceline.engine.input_processor import InputProcessor  # noqa: PLC0415

    expected = run(llama.engine(), OTHERS)
    processor = InputProcessor(engine, None)
    groups = [
        processor.group(list(job.prompt), job.params, options=CallOptions(speculate=i % 2 == 0))
        for i, job in enumerate(OTHERS)
    ]
    for group in groups:
        engine.add(group)
    while engine.has_work:
        engine.step()
    assert [[m.output_token_ids for m in group.members] for group in groups] == expected
    assert [group.members[0].num_drafted > 0 for group in groups] == [True, False, True, False]
