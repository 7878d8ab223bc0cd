"""A ratio rule's output distribution by full enumeration: every draft, every pattern of passes, every last token.

Shape letters: V vocabulary, K depth of the draft. The end of a text (a row that allows no token) counts as token V.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from paceline.speculation.verify.chains import Chains
from paceline.speculation.verify.ratio import RatioVerifier

Path = tuple[int, ...]


@dataclass
class World:
    """A target and a draft: distributions [V] after each path, of up to ``depth`` and ``depth`` - 1 tokens."""

    vocab: int
    depth: int
    p: dict[Path, np.ndarray]
    q: dict[Path, np.ndarray]
    claimed: dict[Path, np.ndarray] | None = None
    """What the drafter says it drew from, if that is not ``q``."""
    certain: bool = False
    """The drafter hands over no distributions: each token stands for itself."""
    stop: Callable[[Path, World], int] = lambda path, world: world.depth
    """Of a draft, how much of it is verified."""

    def paths(self, length: int) -> list[Path]:
        return list(itertools.product(range(self.vocab), repeat=length))

    def mass(self, path: Path) -> float:
        return float(np.prod([self.q[path[:depth]][token] for depth, token in enumerate(path)]))


def random_world(seed: int, *, vocab: int = 3, depth: int = 2, zeros: float = 0.3, dead: float = 0.0) -> World:
    """Random distributions; some tokens impossible, some certain; with ``dead`` some rows allow none."""
    random = np.random.default_rng(seed)

    def row() -> np.ndarray:
        weights = random.exponential(size=vocab) * (random.random(vocab) >= zeros)
        weights = weights if weights.any() else np.eye(vocab)[random.integers(vocab)]
        return weights / weights.sum()

    paths = [path for length in range(depth + 1) for path in itertools.product(range(vocab), repeat=length)]
    p = {path: np.zeros(vocab) if path and random.random() < dead else row() for path in paths}
    return World(vocab, depth, p, {path: row() for path in paths if len(path) < depth})


def target_joint(world: World) -> np.ndarray:
    """[V + 1] * (K + 1): the distribution of the first K + 1 tokens."""
    joint = np.zeros([world.vocab + 1] * (world.depth + 1))
    expand(joint, world, (), 1.0)
    return joint


def expand(joint: np.ndarray, world: World, path: Path, mass: float) -> None:
    """Adds to ``joint`` what the target makes of ``path``, which has probability ``mass``."""
    missing = world.depth + 1 - len(path)
    if not missing:
        joint[path] += mass
    elif not world.p[path].any():
        joint[path + (world.vocab,) * missing] += mass
    else:
        for token in np.flatnonzero(world.p[path]).tolist():
            expand(joint, world, (*path, token), mass * world.p[path][token])


def chains_of(world: World, drafts: list[Path], dtype: torch.dtype) -> Chains:
    """One request per draft."""
    rows = [[world.p[draft[:depth]] for depth in range(world.depth + 1)] for draft in drafts]
    claimed = world.q if world.claimed is None else world.claimed
    drawn = [[claimed[draft[:depth]] for depth in range(world.depth)] for draft in drafts]
    return Chains(
        p=torch.tensor(np.array(rows), dtype=dtype),
        q=None if world.certain else torch.tensor(np.array(drawn), dtype=dtype),
        tokens=torch.tensor(drafts),
        counts=torch.tensor([world.stop(draft, world) for draft in drafts]),
    )


@dataclass
class Outcome:
    joint: np.ndarray  # [V + 1] * (K + 1)
    accepted: float
    """Expected number of draft tokens that stand."""
    stands: dict[Path, float]
    """By draft: the mass with which all of its tokens stand, whatever follows them."""


def outcome(rule: RatioVerifier, world: World, dtype: torch.dtype = torch.float64) -> Outcome:
    """What comes out of one round of verification, continued by the target."""
    drafts = [path for path in world.paths(world.depth) if world.mass(path) > 0]
    chains = chains_of(world, drafts, dtype)
    thresholds, scales = rule.thresholds(chains)
    found = Outcome(np.zeros([world.vocab + 1] * (world.depth + 1)), 0.0, {})
    for pattern in itertools.product([False, True], repeat=world.depth):
        passed = torch.tensor(pattern).expand(len(drafts), -1)
        weights = torch.where(passed, thresholds, 1.0 - thresholds).prod(-1).tolist()
        accepted = rule.accepted(passed)
        residual, plain = chains.behind(accepted, scales.gather(-1, accepted[:, None]).squeeze(-1))
        for number, (draft, weight, count) in enumerate(zip(drafts, weights, accepted.tolist(), strict=True)):
            if weight > 0:
                last = None if plain[number] else residual[number].double().numpy()
                _file(found, world, draft[:count], weight * world.mass(draft), last)
                for length in range(1, count + 1):
                    found.stands[draft[:length]] = found.stands.get(draft[:length], 0.0) + weight * world.mass(draft)
    return found


def _file(found: Outcome, world: World, kept: Path, mass: float, last: np.ndarray | None) -> None:
    """``last`` [V] is what the token behind ``kept`` is drawn from; None is the target itself."""
    found.accepted += mass * len(kept)
    if last is None:
        expand(found.joint, world, kept, mass)
        return
    for token in np.flatnonzero(last).tolist():
        expand(found.joint, world, (*kept, token), mass * last[token] / last.sum())


def bias(rule: RatioVerifier, world: World, dtype: torch.dtype = torch.float64) -> float:
    """Total variation between what comes out and the target."""
    return float(abs(outcome(rule, world, dtype).joint - target_joint(world)).sum() / 2)
