"""Verification by sampling the target: a draft token stands if the target, with its own noise, chose the same."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from paceline.core.batch import Drafts, Int32, Int64, SampleRows, Verdict
from paceline.sampling import Pipeline
from paceline.speculation.verify.base import append, undrafted, verifiers


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
        self, logits: torch.Tensor, rows: SampleRows, drafts: Drafts, sample_start: Int32, pipeline: Pipeline
    ) -> Verdict:
        sampled = pipeline.sample(logits, rows)
        if not drafts.width:
            return undrafted(sampled.tolist(), sample_start.tolist())
        walk = _walk_chain if drafts.is_chain else _walk_tree
        verdict = Verdict([], [], [])
        for number in range(len(drafts.counts)):
            first, last = int(sample_start[number]), int(sample_start[number + 1])
            path = walk(sampled[first:last], drafts, number) if last > first else []
            chosen = [first, *(first + 1 + node for node in path)] if last > first else []
            append(verdict, sampled[chosen].tolist(), path, chosen)
        return verdict


def _walk_chain(sampled: Int64, drafts: Drafts, number: int) -> list[int]:
    count = int(drafts.counts[number])
    differs = np.flatnonzero(sampled[:count] != drafts.tokens[number, :count])
    return list(range(int(differs[0]) if len(differs) else count))


def _walk_tree(sampled: Int64, drafts: Drafts, number: int) -> list[int]:
    count = int(drafts.counts[number])
    tokens, parents = drafts.tokens[number, :count].tolist(), drafts.parents[number, :count].tolist()
    children = {
        (parent, token): node for node, (parent, token) in reversed(list(enumerate(zip(parents, tokens, strict=True))))
    }
    path: list[int] = []
    node = -1
    while (child := children.get((node, int(sampled[node + 1])))) is not None:
        path.append(child)
        node = child
    return path
