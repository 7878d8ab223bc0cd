"""Bugs that broke losslessness elsewhere, to be planted into the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from paceline.core.batch import SampleRows
from paceline.core.step import DraftTrees
from paceline.engine import compute
from paceline.kernels import philox
from paceline.kernels.philox import Domain
from paceline.sampling import Pipeline, SamplingState, pipeline
from paceline.sampling.noise import Noise, NoiseKeys
from paceline.speculation import GuardedProposer
from paceline.speculation.verify import ratio


def _drafting(monkeypatch: pytest.MonkeyPatch, draft: Any) -> None:
    """``draft(pipeline, logits, rows, what the true method returns)`` stands in for ``Pipeline.draft``."""
    true = Pipeline.draft
    monkeypatch.setattr(
        Pipeline, "draft", lambda self, logits, rows: draft(self, logits, rows, *true(self, logits, rows))
    )


def what_is_handed_over_are_the_raw_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    _drafting(monkeypatch, lambda _self, logits, _rows, tokens, _probs: (tokens, logits.softmax(-1).float()))


def drafts_are_the_likeliest_tokens_of_what_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    _drafting(monkeypatch, lambda _self, _logits, _rows, _tokens, probs: (probs.argmax(-1).numpy(), probs))


def drafts_are_drawn_without_truncation(monkeypatch: pytest.MonkeyPatch) -> None:
    def draft(self: Pipeline, logits: Any, rows: Any, _tokens: Any, probs: Any) -> Any:
        keys = self.noise_keys(rows, Domain.DRAFT)
        raw = self.choose(logits.float(), keys).numpy()
        inside = probs.gather(-1, torch.from_numpy(raw)[:, None]).squeeze(-1).numpy() > 0
        return np.where(inside, raw, _tokens), probs

    _drafting(monkeypatch, draft)


def drafts_are_drawn_from_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    def draft(self: Pipeline, logits: Any, rows: Any, _tokens: Any, probs: Any) -> Any:
        keys = self.noise_keys(rows, Domain.DRAFT)
        return self.choose(probs.bfloat16().float().log(), keys).numpy(), probs

    _drafting(monkeypatch, draft)


def _one_domain(monkeypatch: pytest.MonkeyPatch, mine: Domain, theirs: Domain) -> None:
    true = Noise.keys
    monkeypatch.setattr(
        Noise,
        "keys",
        lambda self, rows, domain=Domain.TARGET, *rest: true(self, rows, theirs if domain is mine else domain, *rest),
    )


def replacements_reuse_the_noise_of_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    _one_domain(monkeypatch, Domain.RESIDUAL, Domain.DRAFT)


def replacements_reuse_the_noise_of_acceptance(monkeypatch: pytest.MonkeyPatch) -> None:
    _one_domain(monkeypatch, Domain.RESIDUAL, Domain.ACCEPT)


def acceptance_reuses_the_noise_of_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    _one_domain(monkeypatch, Domain.ACCEPT, Domain.DRAFT)


def drafts_share_the_noise_of_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they do for ``match``; with it everything that a ratio rule draws."""
    true = Noise.keys
    monkeypatch.setattr(Noise, "keys", lambda self, rows, *_: true(self, rows))


def a_draft_reuses_the_noise_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Depths are no part of the key: what a rejected draft drew is drawn again at the same output index."""
    true = Noise.keys

    def keys(self: Noise, rows: SampleRows, domain: Domain = Domain.TARGET, *_: Any) -> NoiseKeys:
        found = true(self, rows, domain)
        return found._replace(domain=torch.full_like(found.domain, int(domain)))

    monkeypatch.setattr(Noise, "keys", keys)


def unlikely_drafts_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    true = GuardedProposer._proposed

    def propose(self: GuardedProposer, plan: Any) -> DraftTrees:
        drafts = true(self, plan)
        if drafts.probs is None:
            return drafts
        likely = drafts.probs.gather(-1, torch.from_numpy(drafts.tokens.astype(np.int64))[..., None])[..., 0] > 0.4
        return replace(drafts, counts=np.minimum(drafts.counts, likely.long().cumprod(-1).sum(-1).numpy()))

    monkeypatch.setattr(GuardedProposer, "_proposed", propose)


def _processed(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Processors see changed rows; noise does not."""
    true = Pipeline.scores
    monkeypatch.setattr(Pipeline, "scores", lambda self, logits, rows: true(self, logits, change(rows)))


def penalties_are_blind_to_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    _processed(monkeypatch, lambda rows: replace(rows, path=np.full_like(rows.path, -1)))


def penalties_see_the_last_drafted_token_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def last(rows: SampleRows) -> SampleRows:
        path = np.full_like(rows.path, -1)
        depth = (rows.path >= 0).sum(axis=1)
        at = np.flatnonzero(depth)
        path[at, depth[at] - 1] = rows.path[at, depth[at] - 1]
        return replace(rows, path=path)

    _processed(monkeypatch, last)


def drafting_leaves_its_tokens_in_the_penalties(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Pipeline.draft

    def draft(self: Pipeline, logits: Any, rows: SampleRows) -> Any:
        tokens, probs = true(self, logits, rows)
        for seat, token in zip(rows.seats.tolist(), tokens.tolist(), strict=True):
            self.state.commit(seat, [token])
        return tokens, probs

    monkeypatch.setattr(Pipeline, "draft", draft)


def _chains(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    true = ratio._chains
    monkeypatch.setattr(ratio, "_chains", lambda *arguments: change(true(*arguments)))


def requests_are_weighed_with_their_neighbours_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    _chains(monkeypatch, lambda chains: replace(chains, q=chains.q.roll(1, 0)))


def requests_get_their_neighbours_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Pipeline.choose
    monkeypatch.setattr(Pipeline, "choose", lambda *arguments: true(*arguments).roll(1, 0))


def rows_are_counted_as_if_drafts_were_equally_long(monkeypatch: pytest.MonkeyPatch) -> None:
    true = ratio._grid

    def grid(sample_start: Any, verified: Any, depth: int) -> torch.Tensor:
        found = true(sample_start, verified, depth)
        even = torch.arange(found.numel()).view_as(found)
        return even.clamp(max=int(sample_start[-1]) - 1)

    monkeypatch.setattr(ratio, "_grid", grid)


def seeds_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    true = SamplingState.fill

    def fill(self: SamplingState, request: Any) -> None:
        true(self, request)
        self.seed[request.seat] = 7

    monkeypatch.setattr(SamplingState, "fill", fill)


def rejected_tokens_stay_in_the_targets_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a round's first row writes goes astray, so that its slot keeps what an earlier draft left there."""
    true = compute.verify_rows

    def astray(plan: Any, drafts: DraftTrees, *rest: Any) -> Any:
        rows = true(plan, drafts, *rest)
        cells = rows.batch.cells.copy()
        cells[:, rows.batch.row_start[:-1][(plan.num_known == 1) & (plan.start > 0)]] = 0
        return replace(rows, batch=replace(rows.batch, cells=cells))

    monkeypatch.setattr(compute, "verify_rows", astray)


def ties_go_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    true = pipeline._only_best
    monkeypatch.setattr(pipeline, "_only_best", lambda scores: true(scores.flip(-1)).flip(-1))


def uniform_numbers_have_24_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(philox, "_to_unit", lambda words: (words // 2**8) * 2.0**-24)
