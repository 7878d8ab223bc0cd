"""Expected tokens a step of each verifier, on random distributions: python3 scripts/measure_verifiers.py.

Targets and drafts are softmaxes of normal logits over 16 tokens; a draft's logits are the target's with noise. Drafts
are chains of ``DEPTH`` tokens, or trees of as many levels with ``width`` children a node: drawn without replacement,
or, for match, the likeliest of the draft, which are certain.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from paceline.speculation.verify import BlockVerifier, TokenVerifier, TraversalVerifier, TreeVerifier
from paceline.speculation.verify.chains import Chains
from paceline.speculation.verify.trees import Trees

VOCAB, DEPTH, COUNT = 16, 3, 4_000


class Worlds:
    """``COUNT`` independent targets and drafts, a pair of rows behind each node of a tree."""

    def __init__(self, width: int, noise: float, *, sample: bool) -> None:
        random, parents, levels = np.random.default_rng(0), [], [[-1]]
        for _ in range(DEPTH):
            levels.append([len(parents) + place for place in range(width * len(levels[-1]))])
            parents += [parent for parent in levels[-2] for _ in range(width)]
        logits = 2.0 * random.standard_normal((COUNT, len(parents) + 1, VOCAB))
        self.p = softmax(logits)
        self.whole = q = softmax(logits + noise * random.standard_normal(logits.shape))
        score = np.log(q) + (random.gumbel(size=q.shape) if sample else 0.0)
        self.parents = np.array(parents)
        self.depths = np.array([1 + next(d for d, level in enumerate(levels) if p in level) for p in parents])
        order = np.argsort(-score, axis=-1)[:, :, :width]
        self.tokens = np.stack([order[:, p + 1, n % width] for n, p in enumerate(parents)], axis=1)
        self.q = q[:, self.parents + 1].copy()
        for node in range(len(parents)):
            for elder in range(node - node % width, node):
                np.put_along_axis(self.q[:, node], self.tokens[:, elder, None], 0.0, axis=-1)
        self.q /= self.q.sum(-1, keepdims=True)

    def trees(self, *, certain: bool) -> Trees:
        return Trees(
            p=torch.from_numpy(self.p).flatten(0, 1),
            q=None if certain else torch.from_numpy(self.q),
            first=torch.arange(COUNT) * self.p.shape[1],
            tokens=torch.from_numpy(self.tokens),
            parents=torch.from_numpy(self.parents).expand(COUNT, -1),
            counts=torch.full((COUNT,), len(self.parents)),
        )

    def accepted(self, last: torch.Tensor) -> float:
        return float(np.where(last.numpy() < 0, 0, self.depths[last.numpy()]).mean())


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def measured(width: int, noise: float) -> dict[str, float]:
    drawn, uniform = Worlds(width, noise, sample=True), torch.rand(COUNT, 10_000, dtype=torch.float64)
    likeliest, found = Worlds(width, noise, sample=False), {}
    for name, worlds, rule in (
        ("match, likeliest", likeliest, TreeVerifier()),  # of what is certain each rule keeps as much
        ("tree", drawn, TreeVerifier()),
        ("traversal", drawn, TraversalVerifier()),
    ):
        trees = worlds.trees(certain=worlds is likeliest)
        found[name] = 1 + worlds.accepted(rule.decide(trees, uniform[:, : trees.tokens.shape[1]]).last)
    if width == 1:
        chains = Chains(torch.from_numpy(drawn.p), torch.from_numpy(drawn.q), trees.tokens, torch.full((COUNT,), DEPTH))
        for name, chain_rule in (("token", TokenVerifier()), ("block", BlockVerifier())):
            passed = uniform[:, :DEPTH] < chain_rule.thresholds(chains)[0]
            found[name] = 1 + chain_rule.accepted(passed).double().mean().item()
    found["match, shared noise"] = shared(drawn, width)
    return found


def shared(worlds: Worlds, width: int) -> float:
    """Of match with a drafter that draws ``width`` children with the target's noise; all rows are alike."""
    p, q = worlds.p[:, 0], worlds.whole[:, 0]
    noise = np.random.default_rng(1).gumbel(size=p.shape)
    drawn = np.argsort(-(np.log(q) + noise), axis=-1)[:, :width]
    hit = (drawn == (np.log(p) + noise).argmax(-1)[:, None]).any(-1).mean()
    return float(sum(hit**level for level in range(DEPTH + 1)))


if __name__ == "__main__":
    torch.manual_seed(0)
    for noise in (0.7, 1.5):
        for width in (1, 2, 3, 4):
            line = ", ".join(f"{name} {value:.2f}" for name, value in measured(width, noise).items())
            sys.stdout.write(f"noise {noise}, width {width}: {line}\n")
