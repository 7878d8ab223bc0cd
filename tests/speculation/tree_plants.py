"""Bugs of drawn trees, to be planted into the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from paceline.core.step import DraftTrees
from paceline.kernels.philox import Domain
from paceline.sampling import Pipeline
from paceline.sampling.noise import Noise
from paceline.speculation import GuardedProposer
from paceline.speculation.verify import tree_ratio


def _drawing(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """``change(tokens [R, W], probs [R, W, V])`` stands in for what ``Pipeline.draft_distinct`` returns."""
    true = Pipeline.draft_distinct
    monkeypatch.setattr(Pipeline, "draft_distinct", lambda *args: change(*true(*args)))


def siblings_carry_their_parents_row(monkeypatch: pytest.MonkeyPatch) -> None:
    _drawing(monkeypatch, lambda tokens, probs: (tokens, probs[:, :1].expand(probs.shape).contiguous()))


def siblings_come_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """By number instead of by draw; rows stay with their tokens, and the parents' row serves where one would be 0."""

    def change(tokens: np.ndarray, probs: torch.Tensor) -> Any:
        both = (tokens >= 0).all(axis=1)[:, None]
        order = np.where(both, np.argsort(tokens, axis=1, kind="stable"), np.arange(tokens.shape[1]))
        rows = torch.arange(len(tokens))[:, None]
        return np.take_along_axis(tokens, order, axis=1), probs[rows, torch.from_numpy(order)]

    _drawing(monkeypatch, change)


def the_likeliest_tokens_are_said_to_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(tokens: np.ndarray, probs: torch.Tensor) -> Any:
        best = probs[:, 0].topk(tokens.shape[1], dim=-1).indices
        first = probs[:, :1].expand(probs.shape).clone()
        for place in range(1, tokens.shape[1]):
            first[:, place:] = first[:, place:].scatter(-1, best[:, None, place - 1 : place].expand(-1, 1, 1), 0.0)
        total = first.sum(-1)
        drawn = (first / total.clamp(min=1e-30)[..., None]).contiguous()
        return np.where((total.numpy() > 0) & (tokens >= 0), best.numpy(), tokens), drawn

    _drawing(monkeypatch, change)


def nodes_of_a_level_share_their_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Noise.keys
    monkeypatch.setattr(Noise, "keys", lambda self, rows, domain=Domain.TARGET, *_: true(self, rows, domain))


def the_last_level_is_dropped_where_it_is_unlikely(monkeypatch: pytest.MonkeyPatch) -> None:
    true = GuardedProposer._proposed

    def propose(self: GuardedProposer, plan: Any) -> DraftTrees:
        drafts = true(self, plan)
        if drafts.probs is None:
            return drafts
        likely = drafts.probs.gather(-1, torch.from_numpy(drafts.tokens.astype(np.int64))[..., None])[..., 0] > 0.3
        return replace(drafts, counts=np.minimum(drafts.counts, likely.long().cumprod(-1).sum(-1).numpy()))

    monkeypatch.setattr(GuardedProposer, "_proposed", propose)


def requests_are_weighed_with_their_neighbours_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    true = tree_ratio._trees

    def trees(*args: Any) -> Any:
        found = true(*args)
        return replace(found, q=found.q.roll(1, 0))

    monkeypatch.setattr(tree_ratio, "_trees", trees)
