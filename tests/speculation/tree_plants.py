"""Bugs of drawn trees, to be planted into the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from paceline.kernels.philox import Domain
from paceline.sampling import Pipeline
from paceline.sampling.noise import Noise


def _drawing(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """``change(tokens [R, W], probs [R, W, V])`` stands in for what ``Pipeline.draft_distinct`` returns."""
    true = Pipeline.draft_distinct
    monkeypatch.setattr(Pipeline, "draft_distinct", lambda *args: change(*true(*args)))


def siblings_carry_their_parents_row(monkeypatch: pytest.MonkeyPatch) -> None:
    _drawing(monkeypatch, lambda tokens, probs: (tokens, probs[:, :1].expand(probs.shape).contiguous()))


def siblings_come_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """By number instead of by draw; rows go with their tokens."""

    def change(tokens: np.ndarray, probs: torch.Tensor) -> Any:
        order = np.argsort(tokens, axis=1, kind="stable")
        rows = torch.arange(len(tokens))[:, None]
        return np.take_along_axis(tokens, order, axis=1), probs[rows, torch.from_numpy(order)]

    _drawing(monkeypatch, change)


def rows_are_not_normalised_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(tokens: np.ndarray, probs: torch.Tensor) -> Any:
        return tokens, torch.where(probs > 0, probs[:, :1], 0.0)

    _drawing(monkeypatch, change)


def the_likeliest_tokens_are_said_to_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a tree of likeliest tokens that hands over what they have of the draft's distribution."""

    def change(tokens: np.ndarray, probs: torch.Tensor) -> Any:
        best, rows, rest = [], [], probs[:, 0]
        for _ in range(tokens.shape[1]):
            best.append(rest.argmax(-1))
            rows.append(rest)
            rest = rest.scatter(-1, best[-1][:, None], 0.0)
            rest = rest / rest.sum(-1, keepdim=True).clamp(min=1e-30)
        found = torch.stack(rows, dim=1)
        return np.where(found.amax(-1).numpy() > 0, torch.stack(best, dim=1).numpy(), -2), found

    _drawing(monkeypatch, change)


def nodes_of_a_level_share_their_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Noise.keys
    monkeypatch.setattr(Noise, "keys", lambda self, rows, domain=Domain.TARGET, *_: true(self, rows, domain))


def levels_share_their_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Noise.keys

    def keys(self: Noise, rows: Any, domain: Domain = Domain.TARGET, places: Any = None) -> Any:
        found = true(self, rows, domain, places)
        return found._replace(output_index=torch.zeros_like(found.output_index), domain=found.domain & ~(0xFFF << 8))

    monkeypatch.setattr(Noise, "keys", keys)
