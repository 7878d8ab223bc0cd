"""Every method under every control, K/V layout and disturbance: texts are those without drafts."""

from __future__ import annotations

from typing import Any

import pytest

from paceline.core.params import SamplingParams
from paceline.engine.engine import Engine
from paceline.engine.input_processor import InputProcessor
from tests.invariance.conftest import VOCAB_SIZE
from tests.invariance.methods.answers import Answer, answers, speculation
from tests.support.engines import Hook, Job, Models, cache_content, check_books, preempt_every, prompts
from tests.support.letters import letters
from tests.support.matrix import covers

PROMPTS = prompts(5, VOCAB_SIZE, [23, 9, 31])
SEEDED = {"temperature": 1.0, "seed": 11}
CONTROLS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "top-k, top-p, min-p": {"temperature": 0.9, "seed": 12, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    "penalties": {"temperature": 0.8, "seed": 14, "presence_penalty": 0.8, "repetition_penalty": 1.3},
    "logit bias": {**SEEDED, "logit_bias": {5: 4.0, 7: -3.0}},
    "stop strings": {**SEEDED, "stop": ["_p", "wE"]},
    "min_tokens": {**SEEDED, "min_tokens": 9, "stop_token_ids": list(range(20, 50))},
    "logprobs": {**SEEDED, "logprobs": 3},
    "allowed tokens": {**SEEDED, "allowed_token_ids": list(range(3, 12))},
    "n": {**SEEDED, "n": 3},
}
LONG = {"temperature": 0.0, "max_tokens": 18, "ignore_eos": True}
MIXED = [
    Job(PROMPTS[0], SamplingParams(**LONG)),
    Job(PROMPTS[1], SamplingParams(temperature=0.8, seed=4, n=2, max_tokens=10, ignore_eos=True)),
    Job(PROMPTS[2], SamplingParams(temperature=1.0, seed=9, top_p=0.9, max_tokens=8)),
    Job(PROMPTS[2][:1], SamplingParams(temperature=0.0, repetition_penalty=1.3, max_tokens=12)),
]
SHAPES: dict[str, tuple[dict[str, Any], Hook | None]] = {
    "pages of 1": ({"block_size": 1}, None),
    "pages of 4": ({"block_size": 4}, None),
    "pages of 16": ({"block_size": 16}, None),
    "contiguous K/V": ({"cache": "static"}, None),
    "no K/V cache": ({"cache": "none"}, None),
    "chunked prompts": ({"block_size": 4, "max_num_batched_tokens": 20}, None),
    "preemption": ({"block_size": 4, "max_num_batched_tokens": 48}, preempt_every(3)),
    "few pages": ({"block_size": 4, "num_blocks": 24}, None),
    "reference attention": ({"block_size": 4, "attention_backend": "reference"}, None),
}
_PLAIN: dict[Any, Any] = {}


def plain(key: str, models: Models, jobs: list[Job]) -> list[list[Answer]]:
    """What the calls get without drafts; computed once for all methods."""
    if key not in _PLAIN:
        _PLAIN[key] = answers(models.engine(), jobs)
    return _PLAIN[key]


def control_jobs(control: str) -> list[Job]:
    return [Job(prompt, SamplingParams(**{"max_tokens": 16, **CONTROLS[control]})) for prompt in PROMPTS[:2]]


@covers("controls", param=("control", CONTROLS))
def test_controls(method: str, control: str, llama: Models) -> None:
    jobs = control_jobs(control)
    engine = llama.engine(speculation(method), block_size=4)
    assert answers(engine, jobs) == plain(control, llama, jobs)
    assert engine.counters.num_drafted > 0


@pytest.mark.parametrize("control", [name for name in CONTROLS if name not in ("greedy", "logprobs", "n")])
def test_controls_bite(control: str, llama: Models) -> None:
    """Else the comparisons above would say little."""
    jobs = control_jobs(control)
    free = {key: value for key, value in CONTROLS[control].items() if key in ("temperature", "seed")}
    without = [Job(job.prompt, SamplingParams(max_tokens=16, **free)) for job in jobs]
    assert answers(llama.engine(), without) != plain(control, llama, jobs)


def content(engine: Engine, models: Models) -> None:
    """The target's K/V are those of the known tokens, and a draft model's too."""
    cache_content(engine, models.target, 0)
    proposer = engine.proposer
    if proposer is not None and proposer.model in models.drafts.values():
        cache_content(engine, proposer.model, 1)


@covers("{}", param=("shape", SHAPES))
def test_shapes(method: str, shape: str, llama: Models) -> None:
    """In a batch, with several answers a call; after every step the caches hold what the models compute."""
    options, disturb = SHAPES[shape]
    engine = llama.engine(speculation(method), **options)

    def hook(engine: Engine, step: int) -> None:
        if options.get("cache") != "none":
            content(engine, llama)
        if disturb is not None:
            disturb(engine, step)

    assert answers(engine, MIXED, hook=hook) == plain("mixed", llama, MIXED)
    assert engine.counters.num_drafted > 0


@covers("batch, n")
def test_a_batch(method: str, llama: Models) -> None:
    """Each call gets what it gets alone; drafts are right now and then."""
    engine = llama.engine(speculation(method))
    together = answers(engine, MIXED)
    assert 0 < engine.counters.num_accepted < engine.counters.num_drafted
    alone = [answers(llama.engine(speculation(method)), [job])[0] for job in MIXED]
    assert together == alone == plain("mixed", llama, MIXED)


TURNS = [prompts(30 + turn, VOCAB_SIZE, [7 + 4 * turn])[0] for turn in range(3)]


def converse(engine: Engine, models: Models) -> tuple[list[list[int]], list[int]]:
    """Two dialogues of three turns that begin alike: the answers, and how many tokens each turn found cached."""
    processor, said, hits = InputProcessor(engine, letters()), [], []
    for opening in ((), (9, 9)):
        history: list[int] = []
        for turn in TURNS:
            history += [*turn, *opening]
            params = SamplingParams(temperature=0.7, seed=2, max_tokens=9, ignore_eos=True)
            group = processor.group(history, params)
            engine.add(group)
            while not group.finished:
                engine.step()
                check_books(engine)
                content(engine, models)
            said.append(group.members[0].output_token_ids)
            hits.append(group.members[0].num_cached_tokens)
            history = [*history, *said[-1]]
    return said, hits


@covers("prefix cache")
def test_conversations(method: str, llama: Models) -> None:
    """Turns find as much with drafts as without, and get the same texts."""
    expected, hits = converse(llama.engine(block_size=4), llama)
    assert converse(llama.engine(speculation(method), block_size=4), llama) == (expected, hits)
    assert hits[0] == 0
    assert all(hits[1:3])


@covers("abort", param=("after", ["1", "4"]))
def test_an_abort_frees_everything(method: str, after: str, llama: Models) -> None:
    """In the prompt and while drafts are out; who stays gets the same text."""
    engine = llama.engine(speculation(method), block_size=4, max_num_batched_tokens=40)
    processor = InputProcessor(engine, letters())
    groups = [processor.group(list(job.prompt), job.params) for job in MIXED]
    for group in groups:
        engine.add(group)
    for _ in range(int(after)):
        engine.step()
    engine.abort(groups[0])
    engine.abort(groups[1])
    engine.cache.check()
    while engine.has_work:
        engine.step()
        check_books(engine)
    counts = engine.cache.counts()
    assert counts.referenced == 0
    assert counts.free + counts.cached == counts.total
    expected = plain("mixed", llama, MIXED)
    assert [group.members[0].output_token_ids for group in groups[2:]] == [found[0].tokens for found in expected[2:]]
