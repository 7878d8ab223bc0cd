"""A prefix that was found instead of computed is invisible in the tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from paceline.cache import CacheManager
from paceline.cache.prefix import LruPrefixIndex
from paceline.core.call import CallOptions
from paceline.core.params import SamplingParams
from paceline.core.request import Group
from paceline.engine.engine import Engine
from paceline.engine.input_processor import InputProcessor
from paceline.engine.stats import metrics_of
from tests.support import proposers
from tests.support.engines import Job, Models, cache_content, dense_kv, drive, preempt_every, prompts, run

SHARED = prompts(21, 61, [26])[0]


def jobs() -> list[Job]:
    """Calls that share 26 tokens, then differ; some share all but the last token."""
    tails = [(), (7,), (7, 8, 9), tuple(range(5, 25)), (7, 8, 9, 10, 11)]
    controls = [{"temperature": 0.0}, {"temperature": 1.0, "seed": 4}, {"temperature": 0.9, "seed": 5, "top_k": 9}]
    return [
        Job((*SHARED, *tail), SamplingParams(**controls[number % 3], max_tokens=9, ignore_eos=True, n=1 + number % 2))
        for number, tail in enumerate(tails)
    ]


@pytest.mark.parametrize("method", [None, "near", "ngram", "suffix", "token_recycling", "lookahead"])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_hits_are_invisible(method: str | None, block_size: int, llama: Models) -> None:
    expected = run(llama.engine(enable_prefix_caching=False), jobs())
    speculation = None if method is None else {"method": method}
    if method == "near":
        speculation = {"method": "draft_model", "model": "near"}
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
    group = InputProcessor(engine, None).group(list(job.prompt), job.params)
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


def _index_content(engine: Engine, models: Models, drafter: str | None) -> int:
    """Every page in the index holds, in each group, what that group's model computes for the tokens up to there."""
    owners = [models.target, *([models.drafts[drafter]] if drafter else [])]
    checked = 0
    for entry in engine.cache.prefix._entries.values():  # type: ignore[attr-defined]
        path = [entry]
        while path[0].parent is not None:
            path.insert(0, path[0].parent)
        tokens = [int(token) for one in path for token in np.frombuffer(one.key[1], dtype=np.int32)]
        for group, (model, page) in enumerate(zip(owners, entry.row, strict=True)):
            layers = engine.cache.groups[group]
            pages = torch.tensor([page])
            for layer, pair in enumerate(dense_kv(model, tokens, engine.seats.max_len) if page else []):
                for cells, wanted in zip(layers.store.read(layer, pages), pair, strict=True):
                    held = cells.transpose(1, 2).flatten(0, 1)
                    same = torch.allclose(held, wanted[-len(held) :].to(held.dtype), atol=1e-9)
                    assert same, "the index holds what the model does not compute"
                    checked += 1
    return checked


def _begin(engine: Engine, overflow: str) -> list[Group]:
    processor, options = InputProcessor(engine, None), CallOptions(context_overflow=overflow)
    limit = {"error": 3, "slide": 20}[overflow]
    groups = [
        processor.group(list(j.prompt)[:40], replace(j.params, max_tokens=limit), options=options) for j in jobs()
    ]
    for group in groups:
        engine.add(group)
    return groups


@pytest.mark.parametrize("method", [None, "near", "tree"])
@pytest.mark.parametrize("overflow", ["error", "slide"])
def test_only_proven_tokens_enter_the_index(method: str | None, overflow: str, llama: Models) -> None:
    """Whatever was drafted, dropped, aborted, preempted or slid: what others may find is what they would compute."""
    plain = llama.engine(max_model_len=44)
    expected = _begin(plain, overflow)
    drive(plain, expected)
    for group in expected:
        answers = {(tuple(group.prompt_token_ids), m.sample_index): m.output_token_ids for m in group.members}
        proposers.TRUTH.update(answers)
    config = {"near": {"method": "draft_model", "model": "near"}, "tree": {"method": "random_tree", "model": "9"}}
    engine = llama.engine(
        config.get(method or ""), block_size=2, max_model_len=44, max_num_batched_tokens=12, num_blocks=90
    )
    disturb, drafter = preempt_every(3), "near" if method == "near" else None
    checked = steps = 0
    groups = _begin(engine, overflow)
    while engine.has_work:
        engine.step()
        steps += 1
        disturb(engine, steps)
        if steps == 7:
            engine.abort(groups[3])
        if steps % 5 == 0:
            checked += _index_content(engine, llama, drafter)
    assert checked + _index_content(engine, llama, drafter) > 75


def test_an_index_of_unproven_tokens_is_caught(llama: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: a page counts as full once its slots are taken, be it by draft tokens."""
    true = CacheManager.publish_prefix

    def rash(self: CacheManager, seat: int, tokens: np.ndarray, salt: str) -> None:
        before = [int(group.num_cached[seat]) for group in self.groups]
        for group in self.groups:
            group.num_cached[seat] = min(len(tokens), int(group.num_pages[seat]) * group.page_size)
        true(self, seat, tokens, salt)
        for group, count in zip(self.groups, before, strict=True):
            group.num_cached[seat] = count

    monkeypatch.setattr(CacheManager, "publish_prefix", rash)
    with pytest.raises(AssertionError, match="what the model does not compute"):
        test_only_proven_tokens_enter_the_index("near", "error", llama)


class Colliding(tuple):
    """A key whose hash is that of every other."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 7


def test_colliding_hashes_are_invisible(llama: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(llama.engine(enable_prefix_caching=False), jobs())
    true = LruPrefixIndex._key
    monkeypatch.setattr(LruPrefixIndex, "_key", lambda *arguments: Colliding(true(*arguments)))
    engine = llama.engine(block_size=4)
    assert run(engine, jobs()) == expected
    assert run(engine, jobs()) == expected
    assert engine.cache.num_prefix_hits > 0


@pytest.mark.parametrize("entries", [1, 3, 8])
def test_a_small_index_is_invisible_too(entries: int, llama: Models) -> None:
    expected = run(llama.engine(enable_prefix_caching=False), jobs())
    engine = llama.engine({"method": "draft_model", "model": "near"}, block_size=4, prefix_cache_max_entries=entries)
    for _ in range(2):
        assert run(engine, jobs()) == expected
        assert len(engine.cache.prefix) == entries  # type: ignore[arg-type]
    assert engine.cache.num_prefix_hits > 0


def test_cached_tokens_of_several_answers_are_counted_once(llama: Models) -> None:
    engine = llama.engine(block_size=4, max_num_seqs=2)
    job = Job(SHARED, SamplingParams(temperature=1.0, seed=1, n=5, max_tokens=6))
    assert _cached_tokens(engine, job) == 0
    group = InputProcessor(engine, None).group(list(job.prompt), job.params)
    engine.add(group)
    drive(engine, [group])
    assert metrics_of(group).num_cached_tokens == 24


def test_cached_tokens_are_those_of_the_way_to_the_first_token(llama: Models) -> None:
    """Being preempted neither adds what a request computed itself, nor forgets what it was spared."""
    engine = llama.engine(block_size=4)
    long = Job(SHARED, SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True))
    (group,) = [InputProcessor(engine, None).group(list(long.prompt), long.params)]
    engine.add(group)
    drive(engine, [group], preempt_every(3))
    assert group.members[0].num_preemptions > 2
    assert metrics_of(group).num_cached_tokens == 0
    (again,) = [InputProcessor(engine, None).group(list(long.prompt), long.params)]
    engine.add(again)
    drive(engine, [again], preempt_every(3))
    assert metrics_of(again).num_cached_tokens == 24


def test_a_request_preempted_in_its_prompt_counts_what_it_found_on_its_return(llama: Models) -> None:
    engine = llama.engine(block_size=4, max_num_batched_tokens=8)
    params = SamplingParams(temperature=0.0, max_tokens=3)
    first, second = (InputProcessor(engine, None).group(list(SHARED), params) for _ in range(2))
    engine.add(first)
    engine.step()
    engine.add(second)
    while not second.members[0].seat >= 0:
        engine.step()
    engine.scheduler.preempt(second.members[0])
    waiting = second.members[0]
    engine.scheduler.waiting.remove(waiting)
    drive(engine, [first])
    engine.scheduler.waiting.add(waiting)
    drive(engine, [second])
    assert first.members[0].num_cached_tokens == 0
    assert waiting.num_cached_tokens == 24
