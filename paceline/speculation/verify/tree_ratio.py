"""Verification of trees by weighing: knows how a step's rows become trees and how a decision becomes tokens.

Which nodes stand is a rule's matter. Shape letters: B requests with rows, N nodes of the largest draft, R rows,
V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from paceline.core.batch import Int32, Int64, SampleRows, Verdict
from paceline.core.step import DraftTrees
from paceline.kernels.philox import Domain
from paceline.sampling import Pipeline, probabilities
from paceline.speculation.verify.base import WeighingVerifier, append
from paceline.speculation.verify.trees import Decision, Trees


class TreeRatioVerifier(WeighingVerifier):
    """Trees: a rule says which of their nodes stand."""

    takes_trees: ClassVar[bool] = True

    @abstractmethod
    def decide(self, trees: Trees, uniform: Tensor) -> Decision:
        """A function of its arguments alone; ``uniform`` f64[B, N] has an independent number in (0, 1) per node."""

    def weigh(
        self, logits: Tensor, rows: SampleRows, drafts: DraftTrees, sample_start: Int32, pipeline: Pipeline
    ) -> Verdict:
        verified = np.flatnonzero(np.diff(sample_start))
        log_weights = pipeline.log_weights(logits, rows)
        trees = _trees(probabilities(log_weights), drafts, sample_start[:-1][verified].astype(np.int64), verified)
        last, tokens = self._decided(trees, log_weights, rows, _places(drafts, sample_start, len(rows)), pipeline)
        decided = dict(zip(verified.tolist(), torch.stack([last, tokens], dim=1).cpu().tolist(), strict=True))
        verdict = Verdict([], [], [])
        for number, first in enumerate(sample_start[:-1].tolist()):
            if number not in decided:
                append(verdict, [], [], [])
                continue
            node, token = decided[number]
            path = _path(drafts.parents[number], node)
            emitted = [*drafts.tokens[number, path].tolist(), token]
            append(verdict, emitted, path, [first, *(first + 1 + node for node in path)])
        return verdict

    def _decided(
        self, trees: Trees, log_weights: Tensor, rows: SampleRows, places: Int64, pipeline: Pipeline
    ) -> tuple[Tensor, Tensor]:
        """Two int64[B]: the last node that stands, and the token behind it."""
        node = torch.arange(trees.tokens.shape[1], device=trees.first.device)
        row = (trees.first[:, None] + 1 + node).clamp(max=len(rows) - 1)
        found = self.decide(trees, pipeline.uniform(rows, Domain.ACCEPT, places)[row])
        row = trees.first + 1 + found.last
        target, other = (pipeline.noise_keys(rows, domain).take(row) for domain in (Domain.TARGET, Domain.RESIDUAL))
        keys = target._replace(domain=torch.where(found.plain, target.domain, other.domain))
        weights = torch.where(found.plain[:, None], log_weights[row], found.left.log())
        return found.last, pipeline.choose(weights, keys)


def _trees(p: Tensor, drafts: DraftTrees, first: Int64, verified: Int64) -> Trees:
    """The drafts of the requests ``verified`` [B] beside the target's distributions f[R, V]."""
    used = int(drafts.counts.max())
    probs, counts = drafts.probs, drafts.counts[verified].astype(np.int64)
    if probs is not None:
        probs = (probs if len(verified) == len(probs) else probs[torch.from_numpy(verified).to(p.device)])[:, :used]
    # What is not used may hold anything.
    tokens = np.where(np.arange(used) < counts[:, None], drafts.tokens[verified, :used], 0).astype(np.int64)
    parents = drafts.parents[verified, :used].astype(np.int64)
    arrays = (torch.from_numpy(part).to(p.device) for part in (first, tokens, parents, counts))
    return Trees(p, probs, *arrays)


def _places(drafts: DraftTrees, sample_start: Int32, num_rows: int) -> Int64:
    """int64[R] the place of each row's node in its level, 0 of the last known token."""
    places = np.zeros(num_rows, dtype=np.int64)
    if not drafts.is_chain:
        sampled = np.diff(sample_start)
        owner = np.repeat(np.arange(len(sampled)), sampled)
        node = np.arange(num_rows) - sample_start[owner] - 1
        at = np.flatnonzero(node >= 0)
        places[at] = drafts.places[owner[at], node[at]]
    return places


def _path(parents: Int32, node: int) -> list[int]:
    """The nodes down to ``node``; none for -1."""
    path: list[int] = []
    while node >= 0:
        path.append(node)
        node = int(parents[node])
    return path[::-1]
