"""Many rounds of drafting and verifying at once, with the real noise but distributions that no context changes.

A million rounds cost what a thousand requests cost in an engine, so that a bias of a hundredth shows.
"""

from __future__ import annotations

import numpy as np
import torch

from paceline.core.batch import SampleRows
from paceline.core.step import DraftTrees
from paceline.speculation import Verifier
from tests.support.seating import Room, make_request

SPACING = 1000
"""Requests are one request at output indexes this far apart: their noise has nothing in common."""


def texts(rule: Verifier, p: list[float], q: list[float], *, count: int, depth: int, length: int) -> np.ndarray:
    """[count, length] tokens of a target that always gives ``p`` [V], drafted from ``q`` [V]."""
    room = Room(vocab=len(p))
    room.join(make_request())
    target, draft = (torch.tensor(side, dtype=torch.float64).log() for side in (p, q))
    found = np.full((count, length + depth + 1), -1, dtype=np.int64)
    done = np.zeros(count, dtype=np.int64)
    while (chosen := np.flatnonzero(done < length)).size:
        first = SPACING * chosen + done[chosen]
        drafts = _drafted(room, draft, first, depth)
        for number, tokens in zip(chosen.tolist(), _verified(rule, room, target, first, drafts), strict=True):
            found[number, done[number] : done[number] + len(tokens)] = tokens
            done[number] += len(tokens)
    return found[:, :length]


def _drafted(room: Room, draft: torch.Tensor, first: np.ndarray, depth: int) -> DraftTrees:
    """A chain for each request, whose next token has output index ``first`` [B]."""
    logits = draft.expand(len(first), -1)
    path, probs = np.zeros((len(first), 0), dtype=np.int32), []
    for place in range(depth):
        tokens, drawn = room.pipeline.draft(logits, _rows(first + place, path))
        path = np.concatenate([path, tokens[:, None].astype(np.int32)], axis=1)
        probs.append(drawn)
    return DraftTrees.chains(path, np.full(len(first), depth, dtype=np.int32), torch.stack(probs, dim=1))


def _verified(
    rule: Verifier, room: Room, target: torch.Tensor, first: np.ndarray, drafts: DraftTrees
) -> list[list[int]]:
    ahead = np.arange(drafts.width + 1)
    path = np.where(ahead[:-1] < ahead[:, None], drafts.tokens[:, None, :], -1).reshape(-1, drafts.width)
    rows = _rows((first[:, None] + ahead).ravel(), path)
    start = (np.arange(len(first) + 1) * len(ahead)).astype(np.int32)
    return rule.verify(target.expand(len(rows), -1), rows, drafts, start, room.pipeline).tokens


def _rows(output_index: np.ndarray, path: np.ndarray) -> SampleRows:
    return SampleRows(np.zeros(len(output_index), dtype=np.int32), output_index, path)
