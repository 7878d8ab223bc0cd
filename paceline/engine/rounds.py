"""What several rounds of drafting and verifying in one call come to, as a verdict; knows requests' ends, not models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paceline.core.batch import Drafts, Verdict, Works
from paceline.core.request import Request
from paceline.runner import Taken


@dataclass(frozen=True, slots=True)
class Part:
    """One round of one request."""

    num_nodes: int
    num_accepted: int
    num_tokens: int


def first_drafts(taken: Taken) -> Drafts:
    """The drafts of the first round."""
    tokens = np.maximum(taken.drafts[0], 0).astype(np.int32)
    return Drafts.chains(tokens, np.full(len(tokens), tokens.shape[1], dtype=np.int32))


def verdict_of(taken: Taken) -> Verdict:
    """All rounds' tokens one behind another: all but the last were fed, each at its place, like drafts that stand."""
    verdict = Verdict([], [], [])
    for counts, rounds in zip(taken.counts.T.tolist(), taken.sampled.swapaxes(0, 1).tolist(), strict=True):
        tokens = [token for count, sampled in zip(counts, rounds, strict=True) for token in sampled[:count]]
        verdict.tokens.append(tokens)
        verdict.path.append(list(range(len(tokens) - 1)))
        verdict.rows.append([0] * len(tokens))
    return verdict


def parts_of(works: Works, taken: Taken) -> list[list[Part]]:
    """Each request's rounds. A draft counts up to the token that would end its request, as if it had ended there."""
    found = []
    for number, request in enumerate(works.requests):
        rounds = zip(taken.drafts[:, number].tolist(), taken.counts[:, number].tolist(), strict=True)
        found.append([Part(_length(request, draft), max(count - 1, 0), count) for draft, count in rounds])
    return found


def _length(request: Request, draft: list[int]) -> int:
    enders = request.enders
    return next((place for place, token in enumerate(draft, 1) if token in enders), len(draft))
