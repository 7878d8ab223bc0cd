"""Verification by sampling the target: a draft token stands if the target, with its own noise, chose the same."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from paceline.core.batch import Drafts, Int32, Int64, SampleRows, Verdict
from paceline.sampling import BANNED, Pipeline
from paceline.speculation.verify.base import verifiers


@verifiers.add("match")
class MatchVerifier:
    """Every row is sampled from the target; walk from the root to the child that equals the sample, as far as it goes.

    What is emitted is always a sample of the target with the noise of its own output position, so the text for a
    seed is the text of plain decoding, whatever the drafts were.
    """

    def verify(
        self, logits: torch.Tensor, rows: SampleRows, drafts: Drafts, sample_start: Int32, pipeline: Pipeline
    ) -> Verdict:
        sampled = pipeline.sample(logits, rows)
        if not drafts.width:
            return _undrafted(sampled.tolist(), sample_start.tolist())
        walk = _walk_chain if drafts.is_chain else _walk_tree
        verdict = Verdict([], [], [])
        for number in range(len(drafts.counts)):
            first, last = int(sample_start[number]), int(sample_start[number + 1])
            path = walk(sampled[first:last], drafts, number) if last > first else []
            chosen = [first, *(first + 1 + node for node in path)] if last > first else []
            _append(verdict, sampled[chosen].tolist(), path, chosen)
        return verdict


def _undrafted(sampled: list[int], starts: list[int]) -> Verdict:
    """One token per request that reached its last known one: plain decoding, without a walk."""
    verdict = Verdict([], [], [])
    for first, last in pairwise(starts):
        _append(verdict, sampled[first:last], [], list(range(first, last)))
    return verdict


def _append(verdict: Verdict, tokens: list[int], path: list[int], rows: list[int]) -> None:
    """Files one request's decision; NAN and BANNED are never emitted, the token before them becomes the last."""
    if tokens and tokens[-1] < 0:
        if tokens == [BANNED]:
            verdict.dead_ends.add(len(verdict.tokens))
        tokens, path, rows = tokens[:-1], path[:-1], rows[:-1]
    verdict.tokens.append(tokens)
    verdict.path.append(path)
    verdict.rows.append(rows)


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
