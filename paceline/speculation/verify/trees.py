"""Drafts that are trees beside what the target makes of them; knows distributions, not how tokens are decided.

Shape letters: B requests, N nodes of the largest draft, R rows, V vocabulary, A some of the requests.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Trees:
    """Both sides of a step. Node n was drawn from ``q[:, n]``, given all nodes before it, and is judged by its parent's
    row of ``p``. Parents come before their children, and siblings in the order in which they were drawn.

    A row of ``p`` is 0 everywhere where the target has no token; the text then ends there, as if with a token of its
    own that has probability 1 and is never drafted.
    """

    p: Tensor  # f[R, V]
    q: Tensor | None  # f[B, N, V]; None where every node was certain
    first: Tensor  # int64[B] the row of the last known token; that of node n lies n + 1 further
    tokens: Tensor  # int64[B, N] within the vocabulary, also where unused
    parents: Tensor  # int64[B, N] -1 for the last known token
    counts: Tensor  # int64[B] nodes in use

    def chance(self, left: Tensor, scale: Tensor, here: Tensor, node: Tensor) -> Tensor:
        """f64[A]: with which probability ``node`` [A] of the requests ``here`` [A] passes.

        That is min(1, scale p / q), where p is what the parent has left for the node's token: ``left`` f[A].
        """
        q = 1.0 if self.q is None else self.q[here, node, self.tokens[here, node]].double()
        return (scale * left.double() / q).clamp_(max=1.0)

    def rejected(self, left: Tensor, scale: Tensor, here: Tensor, node: Tensor) -> tuple[Tensor, Tensor]:
        """What the parents of rejected nodes have left, f[A, V] and f64[A], of ``left`` f[A, V] and ``scale`` f64[A].

        The excess R = (scale p - q)+ with the sum S leaves the distribution R / S, and the scale S / (S + 1 - scale).
        Where rounding leaves no excess, the distribution stays as it was.
        """
        scaled = scale[:, None].to(left.dtype) * left
        if self.q is None:
            excess = scaled.scatter(-1, self.tokens[here, node, None], 0.0)
        else:
            excess = scaled.sub_(self.q[here, node]).clamp_(min=0.0)
        mass = excess.sum(-1, dtype=torch.float64)
        some, room = mass[:, None] > 0, mass + (1.0 - scale)
        # All that a dead end has is its end, which no draft takes away from it.
        ends = left.amax(-1) <= 0
        rest = torch.where(ends, scale, torch.where(room > 0, mass / room, 1.0))
        return torch.where(some, excess / mass[:, None].to(left.dtype), left), rest


@dataclass(frozen=True, slots=True)
class Decision:
    """What a rule makes of trees and of uniform numbers."""

    last: Tensor
    """int64[B] the deepest node that stands, -1 for none; its ancestors stand with it."""
    left: Tensor
    """f[B, V] what the token behind it is drawn from."""
    plain: Tensor
    """bool[B] where that is the target's own row, of which nothing was rejected, or which has no token."""
    thresholds: Tensor
    """f64[B, N] what the uniform number of each node had to stay below; 0 of a node that was not asked."""
