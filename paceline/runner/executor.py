"""How a model's passes are computed: the protocols of executors and of graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from paceline.core.batch import Batch, Int32, Int64
from paceline.core.request import Request
from paceline.core.step import DraftTrees
from paceline.runner.rows import RowSpec


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass over T rows gives; valid until the next one."""

    logits: torch.Tensor
    """f[R, V] of the rows that are sampled."""
    hidden: torch.Tensor
    """f[T, D] after the final norm."""
    features: torch.Tensor | None
    """f[T, len(taps) * D]"""


@dataclass(frozen=True, slots=True)
class GraphSizes:
    """What a graph has room for."""

    requests: int
    nodes: int
    """Draft nodes of one request."""
    length: int
    """Tokens of the deepest path of a draft."""
    rounds: int
    rows: int
    """Known tokens that a stage may feed."""
    trees: bool
    """Drafts may be more than chains."""

    def holds(self, other: GraphSizes) -> bool:
        return (
            self.requests >= other.requests
            and (self.nodes, self.length, self.trees) == (other.nodes, other.length, other.trees)
            and self.rounds >= other.rounds
            and self.rows >= other.rows
        )

    def joined(self, other: GraphSizes) -> GraphSizes:
        """Room for both, of which requests and drafts are alike."""
        return replace(self, rounds=max(self.rounds, other.rounds), rows=max(self.rows, other.rows))


class GraphBuilder(Protocol):
    """Describes a round of a step, stage by stage; either computes each call at once, or records it to be replayed.

    What ``place``, ``forward`` and ``sample`` return is only to be handed on to other calls. No call tells the host
    anything.
    """

    def place(self, runner: Any, spec: RowSpec) -> Any:
        """Lays out the rows of a stage of one model, as ``paceline.runner.rows`` says."""
        ...

    def forward(self, rows: Any, *, taps: tuple[int, ...] = (), inputs: Any = None, layers: int | None = None) -> Any:
        """A pass over the rows, as in ``Pass``; ``inputs`` f[T, ``input_size``] is what a draft module reads beside the
        tokens, ``layers`` how many of the first layers are computed before the final norm."""
        ...

    def features(self, rows: Any, masks: torch.Tensor | None = None) -> Any:
        """f[T, F] what ``RoundBuilder.keep`` kept at the slot before each row, which is of a known token.

        A row at slot 0 gets anything finite; a mask node gets ``masks`` f[1, F].
        """
        ...

    def inherit(self, x: Any, before: Any, rows: Any) -> Any:
        """f[T, D] for each node of a stage, the row of its parent in x f[T', D], which is over the rows of the stage
        ``before``. The last known token's row there is the parent of the nodes of the first level."""
        ...

    def apply(self, module: nn.Module, rows: Any, *inputs: Any) -> Any:
        """f[T, out] a module of f[T, in] over a stage's rows. Its type must be in ``runner.native.lowering.modules`` to
        be recorded; eagerly any module will do."""
        ...

    def sample(self, logits: Any, rows: Any) -> Any:
        """The token of each sampled row, under the controls and the noise of its request."""
        ...

    def extend(self, tokens: Any) -> None:
        """Takes tokens sampled from a drafter as the next node of each chain. A chain that has ended stays as it is.

        Of a stage of mask nodes each call takes one more of the tokens that were sampled.
        """
        ...

    def extend_tree(self, logits: Any, rows: Any, width: int, *, shared: bool = False) -> None:
        """Takes the next level of each tree: of the best ``width`` tokens behind each node of the level before, the
        ``width`` nodes whose paths are the likeliest.

        ``shared``: one row per request, of its last known token, tells of all nodes of a level: that of a head which
        does not look at the nodes before.
        """
        ...

    def prune(self, num_nodes: int) -> None:
        """Leaves of each tree the ``num_nodes`` nodes whose paths are the likeliest (EAGLE-2, 2406.16858), numbered
        anew in their order. No stage follows that places nodes."""
        ...


class RoundBuilder(GraphBuilder, Protocol):
    """Describes a whole round."""

    def keep(self, features: Any, rows: Any) -> None:
        """Writes f[T, F] of the target's rows to the cells of their slots, where drafters find them later."""
        ...

    def best(self, logits: Any, rows: Any, count: int) -> None:
        """Hands the likeliest ``count`` tokens of each of the target's sampled rows to the host: ``GraphResult.best``.

        In steps of one round only.
        """
        ...

    def accept(self, samples: Any) -> None:
        """Takes what the target's samples say of each draft, and moves on what is known. It ends a recorded round."""
        ...


@dataclass(frozen=True, slots=True)
class GraphStart:
    """Where B requests stand before the first round."""

    seats: Int32
    context: Int32
    """Known tokens that rows may be of."""
    output_index: Int64
    """Of the next output token."""
    target_start: Int32
    draft_start: Int32
    """The first known token that each model's cache lacks; ``context`` of a request that the drafter is not fed."""
    depth: Int32
    """How deep a draft may be."""
    sampled: npt.NDArray[np.bool_]
    """Whether the last known token is sampled."""
    requests: Sequence[Request]
    drafts: DraftTrees | None = None
    """Those of the first and only round, if the graph drafts none itself."""
    edits: Any = None
    """What the controls make of single logits of its samples."""


@dataclass(frozen=True, slots=True)
class GraphResult:
    """What R rounds came to; there may be fewer than asked for, if every request ended before."""

    tokens: Int64  # [R, B, length + 1]; behind the last one, if a row could not be sampled, what it is instead
    counts: Int32  # [R, B] tokens
    nodes: Int32  # [R, B] drafted nodes
    draft_end: Int32  # [B] slots that the drafter has cached
    broken: npt.NDArray[np.bool_]  # [B] the drafter had a row that could not be sampled
    samples: Int64 | None = None  # [B, nodes + 1] the last round's: behind the last known token, and behind each node
    best: Int32 | None = None  # [B, nodes + 1, count] the last round's likeliest tokens there


class StepGraph(Protocol):
    """A recorded round."""

    def replay(self, start: GraphStart, num_rounds: int) -> GraphResult:
        """Runs rounds in sequence, each from where the one before it ended, without the host.

        Raises:
            IndexError: a token, a page or a position that there is not.
        """
        ...


class Executor(Protocol):
    """Computes the passes of one model; all its layers write K/V to the pool and attend through it."""

    def run(
        self, batch: Batch, taps: tuple[int, ...], inputs: torch.Tensor | None = None, layers: int | None = None
    ) -> Pass:
        """``inputs``: f[T, ``input_size``] what a draft module reads beside the tokens; ``layers``: how many of the
        first ones are computed."""
        ...

    @property
    def obstacle(self) -> str | None:
        """Why no graph can contain this model's passes, if none can."""
        ...

    def capture(self, describe: Callable[[RoundBuilder], None], **tools: Any) -> StepGraph:
        """Records a round. Only of an executor without an obstacle."""
        ...

    def forget(self) -> None:
        """Keeps nothing of passes before: one was cut short while it was planned, and may be half planned."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """f[N, D] after the final norm -> f[N, V]."""
        ...

    def apply(self, module: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        """A module of f[T, in] -> f[T, out] that belongs to this model; valid until the next pass."""
        ...

    def takes(self, module: nn.Module) -> bool:
        """Whether ``apply`` can compute such a module."""
        ...


def power_of_two(count: int) -> int:
    """The least that is at least ``count``: buffers grow by doubling."""
    return 1 << max(count - 1, 0).bit_length()
