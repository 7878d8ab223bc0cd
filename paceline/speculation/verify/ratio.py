"""Verification by weighing: a draft token stands by how much likelier the target finds it than the draft did.

Knows how a step's rows become chains and how a decision becomes tokens; which draft tokens stand is a rule's matter.
Shape letters: B requests with rows, K depth of the longest draft, R rows, V vocabulary.
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
from paceline.speculation.verify.chains import Chains


class RatioVerifier(WeighingVerifier):
    """Chains: a rule says which of their tokens stand."""

    takes_trees: ClassVar[bool] = False

    @abstractmethod
    def thresholds(self, chains: Chains) -> tuple[Tensor, Tensor]:
        """f64[B, K] what a uniform number must stay below for each draft token to pass, 0 past the draft;
        f64[B, K + 1] the factor of p in the residual behind each number of accepted tokens."""

    @abstractmethod
    def accepted(self, passed: Tensor) -> Tensor:
        """int64[B] how many draft tokens stand, given bool[B, K] which of them passed."""

    def weigh(
        self, logits: Tensor, rows: SampleRows, drafts: DraftTrees, sample_start: Int32, pipeline: Pipeline
    ) -> Verdict:
        verified = np.flatnonzero(np.diff(sample_start))
        grid = _grid(sample_start, verified, int(drafts.counts.max())).to(logits.device)
        log_weights = pipeline.log_weights(logits, rows)
        chains = _chains(probabilities(log_weights), grid, drafts, verified)
        accepted, tokens = self._decide(chains, log_weights, rows, grid, pipeline)
        table = torch.stack([accepted, tokens], dim=1).cpu().tolist()
        decided = dict(zip(verified.tolist(), table, strict=True))
        verdict = Verdict([], [], [])
        for number, first in enumerate(sample_start[:-1].tolist()):
            count, *last = decided.get(number, (0,))
            emitted = [*drafts.tokens[number, :count].tolist(), *last]
            append(verdict, emitted, list(range(count)), list(range(first, first + len(emitted))))
        return verdict

    def _decide(
        self, chains: Chains, log_weights: Tensor, rows: SampleRows, grid: Tensor, pipeline: Pipeline
    ) -> tuple[Tensor, Tensor]:
        """Two int64[B]: how many draft tokens stand, and the token behind them."""
        thresholds, scales = self.thresholds(chains)
        uniform = pipeline.uniform(rows, Domain.ACCEPT)[grid[:, :-1]]
        accepted = self.accepted(uniform < thresholds)
        at = accepted[:, None]
        residual, plain = chains.behind(accepted, scales.gather(-1, at).squeeze(-1))
        row = grid.gather(-1, at).squeeze(-1)
        target, other = (pipeline.noise_keys(rows, domain).take(row) for domain in (Domain.TARGET, Domain.RESIDUAL))
        keys = target._replace(domain=torch.where(plain, target.domain, other.domain))
        return accepted, pipeline.choose(torch.where(plain[:, None], log_weights[row], residual.log()), keys)


def _grid(sample_start: Int32, verified: Int64, depth: int) -> Tensor:
    """int64[B, depth + 1]: the rows of the requests ``verified`` [B]; a shorter draft's last row is repeated."""
    last = sample_start[verified + 1, None] - 1
    return torch.from_numpy(np.minimum(sample_start[verified, None] + np.arange(depth + 1), last).astype(np.int64))


def _chains(p: Tensor, grid: Tensor, drafts: DraftTrees, verified: Int64) -> Chains:
    """The drafts of the requests ``verified`` [B] beside the target's distributions f[R, V]."""
    depth, probs = grid.shape[1] - 1, drafts.probs
    if probs is not None:
        probs = (probs if len(verified) == len(probs) else probs[torch.from_numpy(verified).to(p.device)])[:, :depth]
    counts = drafts.counts[verified].astype(np.int64)
    # What is not used may hold anything.
    tokens = np.where(np.arange(depth) < counts[:, None], drafts.tokens[verified, :depth], 0).astype(np.int64)
    return Chains(
        p=p.view(*grid.shape, -1) if grid.numel() == len(p) else p[grid],
        q=probs,
        tokens=torch.from_numpy(tokens).to(p.device),
        counts=torch.from_numpy(counts).to(p.device),
    )
