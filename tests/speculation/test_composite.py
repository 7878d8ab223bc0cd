"""Copies and drafts of a model in one engine: each request gets one of both, and no text changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from paceline.core.config import SpeculativeConfig
from paceline.core.errors import ConfigError
from paceline.core.params import SamplingParams
from paceline.models import load_model
from paceline.speculation.catch_up import DraftCache
from paceline.speculation.suffix import SuffixProposer
from tests.support.checkpoints import perturb, tiny_llama
from tests.support.engines import Job, Models, cache_content, preempt_every, prompts, run

VOCAB = 31
REPEATED = tuple(prompts(1, VOCAB, [9])[0]) * 4
PROMPTS = [REPEATED, *prompts(3, VOCAB, [6, 33, 3])]
JOBS = [
    Job(PROMPTS[0], SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)),
    Job(PROMPTS[1], SamplingParams(temperature=0.8, seed=4, n=2, max_tokens=25, ignore_eos=True)),
    Job(PROMPTS[2], SamplingParams(temperature=0.0, max_tokens=30, repetition_penalty=1.1)),
    Job(PROMPTS[3], SamplingParams(temperature=1.0, seed=9, max_tokens=28, top_p=0.9, ignore_eos=True)),
]


@pytest.fixture(scope="module", params=["float64", "bfloat16"])
def models(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Models:
    directory: Path = tmp_path_factory.mktemp("composite")
    tiny_llama(directory / "target", vocab_size=VOCAB, layers=2, hidden=32, max_positions=128)
    perturb(directory / "target", directory / "near", 0.05)
    dtype = getattr(torch, request.param)
    return Models(load_model(directory / "target", dtype=dtype), {"near": load_model(directory / "near", dtype=dtype)})


def composite(copies: str = "suffix", drafts: str = "draft_model", **more: Any) -> dict[str, Any]:
    chosen = {"composite_copies": copies, "composite_drafts": drafts}
    return {"method": "composite", "model": "near", "num_speculative_tokens": 3, **chosen, **more}


@pytest.mark.parametrize("copies", ["suffix", "ngram"])
@pytest.mark.parametrize("drafts", ["draft_model", "early_exit"])
@pytest.mark.parametrize("preempt", [0, 4])
def test_texts_are_those_without_drafts(copies: str, drafts: str, preempt: int, models: Models) -> None:
    plain = run(models.engine(), JOBS)
    options = composite(copies, drafts, early_exit_layers=1)
    engine = models.engine(options, block_size=4, max_num_batched_tokens=48)
    assert run(engine, JOBS, hook=preempt_every(preempt) if preempt else None) == plain
    assert engine.counters.num_accepted > 10
    assert not engine.proposer.counters.num_failures
    assert run(engine, JOBS) == plain


def test_both_sources_draft_and_the_models_cache_stays_whole(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was copied is fed to the model once it drafts again; its K/V are those of the known tokens."""
    sources = {"copied": 0, "drafted": 0}
    copy, note = SuffixProposer.propose, DraftCache.note

    def copied(self: SuffixProposer, plan: Any) -> Any:
        found = copy(self, plan)
        sources["copied"] += int((found.deepest >= plan.draft_depth).sum())
        return found

    def noted(self: DraftCache, plan: Any, active: Any, ends: Any) -> None:
        sources["drafted"] += int((active & (plan.draft_depth > 0)).sum())
        note(self, plan, active, ends)

    monkeypatch.setattr(SuffixProposer, "propose", copied)
    monkeypatch.setattr(DraftCache, "note", noted)
    engine = models.engine(composite(), block_size=4)
    near = engine.proposer.model
    check = near.dtype == torch.float64

    def hook(engine: Any, _step: int) -> None:
        if check:
            cache_content(engine, near, 1)

    run(engine, JOBS, hook=hook)
    assert min(sources.values()) > 10


def test_copies_that_fail_cost_no_text(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run(models.engine(), JOBS)

    def fails(self: SuffixProposer, plan: Any) -> Any:
        raise ValueError("planted")

    monkeypatch.setattr(SuffixProposer, "propose", fails)
    engine = models.engine(composite())
    assert run(engine, JOBS) == plain
    assert engine.proposer.counters.disabled


def test_what_cannot_be_joined_is_refused(models: Models) -> None:
    for options, said in (
        (composite("draft_model"), "does not copy"),
        (composite("ngram", "suffix"), "suffix, which composite cannot join"),
        (composite(verifier="token"), "weighs what drafts were drawn from"),
        (composite("composite"), "composite_copies is composite, which joins methods"),
        (composite(drafts="composite"), "composite_drafts is composite, which joins methods"),
    ):
        with pytest.raises(ConfigError, match=said):
            models.engine(options)
    with pytest.raises(ConfigError, match="unknown speculative method"):
        models.engine({**composite(), "composite_copies": "nothing"})
    assert SpeculativeConfig.of(composite()).composite_copies == "suffix"
