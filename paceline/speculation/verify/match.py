"""Verification by sampling the target: a draft token stands if the target, with its own noise, chose the same."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch

from paceline.core.batch import Int32, SampleRows, Verdict
from paceline.core.step import DraftTrees
from paceline.sampling import Pipeline
from paceline.speculation.verify.base import append, by_request, undrafted, verifiers


@verifiers.add("match")
class MatchVerifier:
    """Every row is sampled from the target; walk from the root to the child that equals the sample, as far as it goes.

    What is emitted is always a sample of the target with the noise of its own output position, so the text for a
    seed is the text of plain decoding, whatever the drafts were.
    """

    needs_probs: ClassVar[bool] = False
    takes_trees: ClassVar[bool] = True
    keeps_text: ClassVar[bool] = True

    def verify(
        self, logits: torch.Tensor, rows: SampleRows, drafts: DraftTrees, sample_start: Int32, pipeline: Pipeline
    ) -> Verdict:
        sampled = pipeline.sample(logits, rows)
        verdict = self.judge(sampled.tolist(), drafts, sample_start)
        if not drafts.width:
            return verdict
        samples = np.full((len(drafts.counts), drafts.width + 1), -1, dtype=np.int64)
        samples[by_request(sample_start)] = sampled
        return replace(verdict, samples=samples)

    def judge(self, sampled: list[int], drafts: DraftTrees, sample_start: Int32) -> Verdict:
        starts = sample_start.tolist()
        if not drafts.width:
            return undrafted(sampled, starts)
        decide = _walk_chains if drafts.is_chain else _walk_trees
        return decide(sampled, starts, drafts)


def _walk_chains(sampled: list[int], starts: list[int], drafts: DraftTrees) -> Verdict:
    verdict = Verdict([], [], [])
    tokens, counts = drafts.tokens.tolist(), drafts.counts.tolist()
    for (first, last), drafted, count in zip(pairwise(starts), tokens, counts, strict=True):
        accepted = 0
        while accepted < count and last > first and sampled[first + accepted] == drafted[accepted]:
            accepted += 1
        end = min(first + accepted + 1, last)
        append(verdict, sampled[first:end], list(range(accepted)), list(range(first, end)))
    return verdict


def _walk_trees(sampled: list[int], starts: list[int], drafts: DraftTrees) -> Verdict:
    verdict = Verdict([], [], [])
    for number, (first, last) in enumerate(pairwise(starts)):
        path = _walk_tree(sampled[first:last], drafts, number) if last > first else []
        chosen = [first, *(first + 1 + node for node in path)] if last > first else []
        append(verdict, [sampled[row] for row in chosen], path, chosen)
    return verdict


def _walk_tree(sampled: list[int], drafts: DraftTrees, number: int) -> list[int]:
    count = int(drafts.counts[number])
    tokens, parents = drafts.tokens[number, :count].tolist(), drafts.parents[number, :count].tolist()
    children = {
        (parent, token): node for node, (parent, token) in reversed(list(enumerate(zip(parents, tokens, strict=True))))
    }
    path: list[int] = []
    node = -1
    while (child := children.get((node, sampled[node + 1]))) is not None:
        path.append(child)
        node = child
    return path
