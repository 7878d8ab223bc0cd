"""A drafter may do anything wrong and cost only speed; a target's NaN ends the one request it belongs to."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from paceline.cache import KVGroup
from paceline.core.errors import ConfigError
from paceline.core.params import SamplingParams
from paceline.core.step import DraftTrees
from paceline.engine.engine import Engine
from paceline.speculation import DraftModelProposer, NgramProposer
from tests.support.calls import VOCAB_SIZE, assert_idle, begin, finish, greedy, random_prompt, seeded
from tests.support.engines import Models

PROMPTS = [random_prompt(seed, length) for seed, length in ((1, 9), (2, 17), (3, 4))]
PARAMS = [greedy(max_tokens=20), seeded(4, max_tokens=16), seeded(5, max_tokens=24, n=2)]
NEAR = {"method": "draft_model", "model": "near", "num_speculative_tokens": 4}
POISON = 44
"""The token whose embedding is NaN in ``poisoned``."""


def ask(engine: Engine) -> list[Any]:
    return finish(engine, [begin(engine, prompt, params) for prompt, params in zip(PROMPTS, PARAMS, strict=True)])


@pytest.fixture(scope="module")
def expected(models: Models) -> list[Any]:
    return ask(models.engine())


@pytest.fixture
def warnings(caplog) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.WARNING, logger="paceline"):
        yield lambda: [record.getMessage() for record in caplog.records]


def guard_of(engine: Engine) -> Any:
    assert engine.proposer is not None
    return engine.proposer


def misbehave(engine: Engine, call: str, fault: Callable[..., Any], times: int = 10**9, start: int = 2) -> None:
    """Lets ``fault(good answer)`` stand in for calls number ``start`` to ``start + times`` of the drafter."""
    guard = guard_of(engine)
    inner, call = (guard, "_proposed") if call == "propose" else (guard.inner, call)  # whoever makes a draft
    good = getattr(inner, call)
    calls = iter(range(10**9))

    def wrapped(*arguments: Any) -> Any:
        number = next(calls)
        answer = good(*arguments)
        return fault(answer) if start <= number < start + times else answer

    setattr(inner, call, wrapped)


def explode(_answer: Any) -> None:
    raise RuntimeError("boom")


@pytest.mark.parametrize("call", ["propose", "observe", "forget"])
@pytest.mark.parametrize("method", ["draft_model", "ngram"])
def test_raising_once_costs_one_draft(call, method, models: Models, expected, warnings) -> None:
    engine = models.engine(NEAR if method == "draft_model" else {"method": "ngram", "prompt_lookup_min": 1})
    misbehave(engine, call, explode, times=1)
    assert ask(engine) == expected
    counters = guard_of(engine).counters
    assert (counters.num_failures, counters.disabled) == (1, False)
    assert any(f"failed in {call}" in message and "boom" in message for message in warnings())
    assert_idle(engine)
    accepted = engine.counters.num_accepted
    assert ask(engine) == expected
    assert engine.counters.num_accepted > accepted


@pytest.mark.parametrize("call", ["propose", "observe", "forget"])
def test_raising_three_times_in_a_row_ends_speculation(call, models: Models, expected, warnings) -> None:
    engine = models.engine(NEAR)
    misbehave(engine, call, explode)
    assert [ask(engine) for _ in range(3)] == [expected] * 3
    counters = guard_of(engine).counters
    assert counters.disabled
    assert counters.num_failures >= 3
    assert any("speculation is now off" in message for message in warnings())
    drafts = engine.counters.num_drafts
    assert ask(engine) == expected
    assert engine.counters.num_drafts == drafts
    assert_idle(engine)


def test_raising_now_and_then_does_not_end_speculation(models: Models, expected) -> None:
    engine = models.engine(NEAR)
    turns = iter(range(10**9))
    misbehave(engine, "propose", lambda answer: explode(answer) if next(turns) % 3 < 2 else answer)
    assert ask(engine) == expected
    counters = guard_of(engine).counters
    assert counters.num_failures > 3
    assert not counters.disabled
    assert engine.counters.num_accepted > 0


def chain(tokens: Any, counts: Any = None) -> DraftTrees:
    counts = np.full(len(tokens), tokens.shape[1], dtype=np.int32) if counts is None else counts
    return DraftTrees.chains(np.asarray(tokens), counts)


MALFORMED: dict[str, Callable[[DraftTrees], Any]] = {
    "token beyond the vocabulary": lambda d: replace(d, tokens=d.tokens + VOCAB_SIZE),
    "negative token": lambda d: replace(d, tokens=d.tokens - VOCAB_SIZE),
    "parents point forward": lambda d: replace(d, parents=d.parents + 2),
    "parents point at themselves": lambda d: replace(d, parents=d.parents + 1),
    "parents below the root": lambda d: replace(d, parents=d.parents - 1),
    "parents out of range": lambda d: replace(d, parents=np.full_like(d.parents, 999)),
    "more nodes than allowed": lambda d: chain(np.zeros((len(d.counts), 40), dtype=np.int32)),
    "more nodes than there are": lambda d: replace(d, counts=d.counts + 99),
    "negative count": lambda d: replace(d, counts=d.counts - 99),
    "one bad row, one too deep": lambda d: chain(
        np.where(np.arange(len(d.counts))[:, None] == 0, -1, np.ones((len(d.counts), 6), dtype=np.int32))
    ),
}

RUBBISH: dict[str, Callable[[DraftTrees], Any]] = {
    "nothing": lambda d: None,
    "a list": lambda d: d.tokens.tolist(),
    "a request too many": lambda d: chain(np.zeros((len(d.counts) + 1, 2), dtype=np.int32)),
    "a request too few": lambda d: chain(np.zeros((len(d.counts) - 1, 2), dtype=np.int32)),
    "flat": lambda d: DraftTrees(d.tokens.ravel(), d.parents.ravel(), d.counts),
    "parents of another width": lambda d: replace(d, parents=d.parents[:, :-1]),
    "counts as a column": lambda d: replace(d, counts=d.counts[:, None]),
    "float tokens": lambda d: replace(d, tokens=d.tokens.astype(np.float32)),
    "NaN tokens": lambda d: replace(d, tokens=np.full(d.tokens.shape, np.nan)),
    "float counts": lambda d: replace(d, counts=d.counts.astype(np.float64)),
    "infinite counts": lambda d: replace(d, counts=np.full(d.counts.shape, np.inf)),
    "objects": lambda d: replace(d, tokens=d.tokens.astype(object)),
}


@pytest.mark.parametrize("name", [*MALFORMED, *RUBBISH])
@pytest.mark.parametrize("times", [2, 10**9], ids=["twice", "always"])
def test_senseless_drafts(name, times, models: Models, expected, warnings) -> None:
    engine = models.engine(NEAR)
    fault = {**MALFORMED, **RUBBISH}[name]
    misbehave(engine, "propose", lambda drafts: fault(drafts) if drafts.width else drafts, times=times)
    assert ask(engine) == expected
    counters = guard_of(engine).counters
    assert (counters.num_rejected_drafts if name in MALFORMED else counters.num_failures) > 0
    assert warnings()
    assert_idle(engine)
    if times == 2:
        assert not counters.disabled
        assert engine.counters.num_accepted > 0
    accepted = engine.counters.num_accepted
    assert ask(engine) == expected
    assert (engine.counters.num_accepted > accepted) == (times == 2)


def test_padding_may_hold_anything(models: Models, expected) -> None:
    """What lies past a draft's count is nobody's business."""

    def litter(drafts: DraftTrees) -> DraftTrees:
        used = np.arange(drafts.width) < drafts.counts[:, None] - 1
        tokens, parents = np.where(used, drafts.tokens, -7), np.where(used, drafts.parents, 1000)
        return DraftTrees(tokens, parents, np.maximum(drafts.counts - 1, 0))

    engine = models.engine(NEAR)
    misbehave(engine, "propose", litter)
    assert ask(engine) == expected
    assert guard_of(engine).counters.num_rejected_drafts == guard_of(engine).counters.num_failures == 0
    assert engine.counters.num_accepted > 0


def test_one_bad_draft_leaves_the_others(models: Models, expected) -> None:
    def spoil_first(drafts: DraftTrees) -> DraftTrees:
        return replace(drafts, tokens=np.where(np.arange(len(drafts.counts))[:, None] == 0, -5, drafts.tokens))

    engine = models.engine(NEAR)
    misbehave(engine, "propose", spoil_first)
    assert ask(engine) == expected
    assert guard_of(engine).counters.num_rejected_drafts > 0
    assert engine.counters.num_accepted > 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_draft_model_of_nothing_but(value, models: Models, expected, warnings) -> None:
    broken = copy.deepcopy(models.drafts["near"])
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(value)
    engine = Models(models.target, {"near": broken}).engine(NEAR)
    assert ask(engine) == expected
    counters = guard_of(engine).counters
    # Each sequence's drafter gets three chances, so that it does not start over forever.
    assert 3 <= counters.num_rejected_drafts <= 12
    assert not engine.counters.num_drafted
    assert warnings()
    assert_idle(engine)


def test_a_draft_model_that_returns_nan_for_a_while(models: Models, expected) -> None:
    """Its cache is NaN as well then; it starts over and drafts again, as do later owners of its pages."""
    draft = copy.deepcopy(models.drafts["near"])
    engine = Models(models.target, {"near": draft}).engine(NEAR, block_size=4, num_blocks=40)
    healthy = draft.embedding.tokens.weight.detach().clone()
    groups = [begin(engine, prompt, params) for prompt, params in zip(PROMPTS, PARAMS, strict=True)]
    for step in range(4):
        with torch.no_grad():
            draft.embedding.tokens.weight.copy_(healthy * torch.nan if step in (1, 2) else healthy)
        engine.step()
    assert guard_of(engine).counters.num_rejected_drafts > 0
    accepted = engine.counters.num_accepted
    assert finish(engine, groups) == expected
    assert engine.counters.num_accepted > accepted
    rejected = guard_of(engine).counters.num_rejected_drafts
    assert ask(engine) == expected
    assert guard_of(engine).counters.num_rejected_drafts == rejected


@pytest.fixture(scope="module")
def poisoned(models: Models, expected) -> Models:
    """The target's and a draft's embedding of one token is NaN; nobody's plain text holds that token."""
    assert not any(POISON in tokens for tokens in [*PROMPTS, *(one for call in expected for one in call)])
    target = copy.deepcopy(models.target)
    draft = copy.deepcopy(models.drafts["near"])
    for model in (target, draft):
        with torch.no_grad():
            model.embedding.tokens.weight[POISON] = torch.nan
    return Models(target, {"near": models.drafts["near"], "nan": draft})


def assert_failed(member: Any) -> None:
    assert member.finish_reason == "error"
    assert "NaN" in member.error
    assert not member.output_token_ids


CONTROLS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 1},
    {"temperature": 0.7, "seed": 1, "top_p": 0.8, "top_k": 20, "min_p": 0.01},
    {"temperature": 1.0, "seed": 1, "repetition_penalty": 1.2, "frequency_penalty": 0.3, "logit_bias": {3: 1.0}},
    {"temperature": 0.0, "allowed_token_ids": [5, 6, 7], "logprobs": 3, "prompt_logprobs": 3},
    {"temperature": 1.0, "seed": 1, "n": 3},
]


@pytest.mark.parametrize("controls", CONTROLS, ids=str)
@pytest.mark.parametrize(
    ("speculation", "chunk"), [(None, 8), (NEAR, 2048), ({**NEAR, "model": "nan"}, 8)], ids=["off", "near", "nan"]
)
def test_nan_ends_one_request_only(controls, speculation, chunk, poisoned: Models, expected) -> None:
    """Batch mates go on, and later owners of its pages see nothing of it."""
    engine = poisoned.engine(speculation, block_size=4, num_blocks=40, max_num_batched_tokens=chunk)
    bad = [*random_prompt(8, 11), POISON, *random_prompt(9, 13)]
    for _ in range(2):
        failing = begin(engine, bad, SamplingParams(**controls))
        groups = [begin(engine, prompt, params) for prompt, params in zip(PROMPTS, PARAMS, strict=True)]
        assert finish(engine, [failing, *groups])[1:] == expected
        for member in failing.members:
            assert_failed(member)
        assert_idle(engine)
    assert engine.counters.finished["error"] == 2 * len(failing.members)


@pytest.mark.parametrize("length", [96, 97, 100])
@pytest.mark.parametrize("ending", ["abort", "preempt", "fail"])
def test_nan_in_a_prompt_leaves_its_pages_clean(length, ending, poisoned: Models, expected) -> None:
    """Also if the prompt never gets to its end, so that nobody notices; and if members share the pages.

    With 97 tokens the prompt's last token is left for a step of its own: both members hold pages of NaN by then.
    """
    engine = poisoned.engine(block_size=4, num_blocks=40, max_num_batched_tokens=8)
    bad = begin(engine, [POISON] * length, seeded(n=2, max_tokens=2))
    if ending == "fail":
        finish(engine, [bad])
        for member in bad.members:
            assert_failed(member)
    else:
        for _ in range(11):
            engine.step()
        if ending == "preempt":
            engine.scheduler.preempt(bad.members[0])
        engine.abort(bad)
    assert_idle(engine)
    for layers in engine.cache.groups:
        for cells in layers.store.read(0, torch.arange(1, 41)):
            assert cells.isfinite().all()
    assert ask(engine) == expected


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_a_drafted_token_of_nan_harms_nobody(backend, poisoned: Models, expected) -> None:
    """Rejected or not, a draft may not end a request that would go on without it."""
    engine = poisoned.engine(NEAR, block_size=4, num_blocks=40, attention_backend=backend)
    misbehave(engine, "propose", lambda drafts: replace(drafts, tokens=np.full_like(drafts.tokens, POISON)), times=3)
    assert ask(engine) == expected
    assert ask(engine) == expected
    assert_idle(engine)


@pytest.mark.parametrize("speculation", [None, {**NEAR, "model": "nan"}, NEAR], ids=["off", "nan", "near"])
def test_an_answer_that_runs_into_nan(speculation, poisoned: Models) -> None:
    """The tokens up to the fatal one are handed back, the same with and without drafts."""
    engine = poisoned.engine(speculation)
    few = [*range(5, 10), POISON]
    params = seeded(15, max_tokens=100, allowed_token_ids=few, repetition_penalty=1.2, temperature=3.0, logprobs=0)
    group = begin(engine, PROMPTS[0], params)
    mate = begin(engine, PROMPTS[1], params)
    finish(engine, [group, mate])
    plain = poisoned.engine(cache="none")
    assert finish(plain, [begin(plain, PROMPTS[0], params)]) == [[group.members[0].output_token_ids]]
    assert group.members[0].finish_reason == "error"
    assert group.members[0].output_token_ids.index(POISON) == len(group.members[0].output_token_ids) - 1 > 3
    assert len(group.members[0].logprobs) == len(group.members[0].output_token_ids)
    assert_idle(engine)


def test_a_text_that_may_not_go_on_stops_there(models: Models, expected, caplog) -> None:
    """Everything allowed is banned by min_tokens: no fault of the model, nor of the drafter."""
    engine = models.engine(NEAR)
    stuck = begin(engine, PROMPTS[0], greedy(allowed_token_ids=[1], min_tokens=3))
    groups = [begin(engine, prompt, params) for prompt, params in zip(PROMPTS, PARAMS, strict=True)]
    assert finish(engine, [stuck, *groups])[1:] == expected
    assert stuck.members[0].finish_reason == "stop"
    assert stuck.members[0].stop_reason == "every token is banned"
    assert not caplog.records
    assert_idle(engine)


@pytest.mark.parametrize(
    "nodes", [lambda _: -3, lambda _: None, lambda _: 1.5, lambda depth: depth * 1000, lambda _: 1 / 0]
)
def test_a_drafter_that_cannot_count_is_refused_at_the_start(nodes, models: Models, monkeypatch) -> None:
    monkeypatch.setattr(DraftModelProposer, "num_nodes", lambda _, depth: nodes(depth))
    with pytest.raises(ConfigError, match="drafter"):
        models.engine(NEAR)


def test_what_a_drafter_writes_into_its_arguments_stays_there(models: Models, expected, monkeypatch) -> None:
    def vandal(self, plan):
        for array in (plan.seats, plan.start, plan.num_known, plan.draft_depth):
            array[:] = 99
        plan.requests.clear()
        raise RuntimeError("half-way")

    monkeypatch.setattr(NgramProposer, "propose", vandal)
    engine = models.engine({"method": "ngram"})
    assert ask(engine) == expected
    assert engine.proposer.counters.disabled
    assert_idle(engine)


def test_a_perfect_drafter_is_always_right(models: Models) -> None:
    """Draft and target share controls and noise: the target drafting for itself is never rejected."""
    engine = Models(models.target, {"self": models.target}).engine({"method": "draft_model", "model": "self"})
    controls = [{"top_k": 20}, {"presence_penalty": 0.5}, {"min_p": 0.01, "temperature": 1.3}]
    params = [seeded(number, max_tokens=24, ignore_eos=True, **control) for number, control in enumerate(controls)]
    finish(engine, [begin(engine, prompt, each) for prompt, each in zip(PROMPTS, params, strict=True)])
    assert engine.counters.num_accepted == engine.counters.num_drafted > 0


@pytest.mark.parametrize("resets", [True, False], ids=["as it is", "planted bug"])
def test_pages_of_a_drafter_of_nan_come_back_clean(resets, models: Models, monkeypatch) -> None:
    """What the guard takes from a failed drafter is zeroed: a masked NaN would spoil its next owner's drafts."""
    if not resets:
        monkeypatch.setattr(KVGroup, "clear", KVGroup.release)
    engine = models.engine({**NEAR, "model": "nan"})
    ask(engine)
    group = engine.cache.groups[1]
    pages = torch.arange(1, group.pages.num_pages + 1)
    cells = [cells for layer in range(2) for cells in group.store.read(layer, pages)]
    assert all(bool(part.isfinite().all()) for part in cells) == resets
