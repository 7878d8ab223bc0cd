"""The verifier protocol, and how decisions become a verdict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import ClassVar, Protocol

import numpy as np
import torch

from paceline.core.batch import Int32, Int64, SampleRows, Verdict
from paceline.core.registry import Registry
from paceline.core.step import DraftTrees
from paceline.sampling import BANNED, Pipeline


class Verifier(Protocol):
    """Decides the tokens of every request from the target's logits. Without a draft, it samples one token."""

    needs_probs: ClassVar[bool]
    """Drafts are sampled with noise of their own and carry what they were drawn from; else they share the target's."""
    takes_trees: ClassVar[bool]
    """Else every draft must be a chain."""
    keeps_text: ClassVar[bool]
    """A seed's text is that of plain decoding; else only its distribution is, and the text of greedy requests."""

    def judge(self, sampled: list[int], drafts: DraftTrees, sample_start: Int32) -> Verdict:
        """The verdict that ``sampled`` [R] alone gives, which is what ``Pipeline.sample`` says of the rows.

        Only of a verifier that ``keeps_text``, or without drafts.
        """
        ...

    def verify(
        self, logits: torch.Tensor, rows: SampleRows, drafts: DraftTrees, sample_start: Int32, pipeline: Pipeline
    ) -> Verdict:
        """logits f[R, V]; request b owns rows sample_start[b]..sample_start[b + 1]: root first, then its nodes.

        A request whose root row has no valid token gets no tokens.
        """
        ...


verifiers: Registry[type[Verifier]] = Registry("verifier")


class WeighingVerifier(ABC):
    """The text follows the target's distribution exactly, but it is not the text of plain decoding for a seed.

    That holds for drafts drawn from ``DraftTrees.probs`` with noise independent of everything that is drawn here.
    """

    needs_probs: ClassVar[bool] = True
    takes_trees: ClassVar[bool]
    keeps_text: ClassVar[bool] = False

    def judge(self, sampled: list[int], drafts: DraftTrees, sample_start: Int32) -> Verdict:
        assert not drafts.counts.any()
        return undrafted(sampled, sample_start.tolist())

    def verify(
        self, logits: torch.Tensor, rows: SampleRows, drafts: DraftTrees, sample_start: Int32, pipeline: Pipeline
    ) -> Verdict:
        if not drafts.counts.any():
            return self.judge(pipeline.sample(logits, rows).tolist(), drafts, sample_start)
        return self.weigh(logits, rows, drafts, sample_start, pipeline)

    @abstractmethod
    def weigh(
        self, logits: torch.Tensor, rows: SampleRows, drafts: DraftTrees, sample_start: Int32, pipeline: Pipeline
    ) -> Verdict:
        """As ``verify``, where there are drafts."""


def by_request(sample_start: Int32) -> tuple[Int64, Int64]:
    """Of each row, which request's it is, and its place among these: 0 the last known token, 1 + i node i."""
    owners = np.repeat(np.arange(len(sample_start) - 1), np.diff(sample_start))
    return owners, np.arange(len(owners)) - sample_start[owners]


def undrafted(sampled: list[int], starts: list[int]) -> Verdict:
    """One token per request that reached its last known one: plain decoding."""
    if len(sampled) == len(starts) - 1 and min(sampled, default=0) >= 0:
        return Verdict([[token] for token in sampled], [[] for _ in sampled], [[row] for row in range(len(sampled))])
    verdict = Verdict([], [], [])
    for first, last in pairwise(starts):
        append(verdict, sampled[first:last], [], list(range(first, last)))
    return verdict


def append(verdict: Verdict, tokens: list[int], path: list[int], rows: list[int]) -> None:
    """Files one request's decision; NAN and BANNED are never emitted, the token before them becomes the last."""
    if tokens and tokens[-1] < 0:
        if tokens == [BANNED]:
            verdict.dead_ends.add(len(verdict.tokens))
        tokens, path, rows = tokens[:-1], path[:-1], rows[:-1]
    verdict.tokens.append(tokens)
    verdict.path.append(path)
    verdict.rows.append(rows)
