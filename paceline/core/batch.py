"""What travels through one step: the flat batch of rows, the model's output, verdicts.

Shape letters: B requests of the step, T rows, R rows whose logits are needed, G layer groups, N draft nodes,
D depth of a draft, P pages, V vocabulary, W words of ancestor bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SampleRows:
    """For each row of logits: whose it is, which output token it decides, and what the draft put before it."""

    seats: Int32  # [R]
    output_index: Int64  # [R] index of the output token that this row decides: the noise index
    path: Int32  # [R, D] draft tokens between the known tokens and this row's choice, first to last; -1 pads

    def __len__(self) -> int:
        return len(self.seats)


@dataclass(frozen=True, slots=True)
class Batch:
    """Flat rows for one forward pass. Requests' rows are contiguous: known tokens first, then draft nodes.

    A row sees slots [first_visible, visible) of its request, and the draft slots whose bit is set:
    bit i of ``tree_bits`` is slot ``context + i``, bit 63 of a word being its sign.
    """

    token_ids: Int64  # [T]
    positions: Int64  # [T] what the position embedding sees
    row_request: Int32  # [T] index into the step's requests
    visible: Int32  # [T]
    tree_bits: Int64  # [T, W]
    row_start: Int32  # [B + 1]
    context: Int32  # [B] slot of draft node 0
    num_slots: Int32  # [B] slots in use after this pass (context + nodes, or end of the chunk)
    longest: Int32  # [B] most tokens that each request may come to have; some rotary embeddings go by it
    cells: Int64  # [G, T] physical cell that each row's K/V is written to
    page_table: tuple[Int32, ...]  # per group [B, P]
    logit_rows: Int64  # [R] rows whose logits are sampled
    sample_start: Int32  # [B + 1] a request's span in logit_rows; empty where a chunk does not reach the end
    prompt_rows: Int64  # rows whose logits only serve prompt_logprobs
    first_visible: tuple[Int32 | None, ...]  # per group [T]; None where the whole prefix is visible
    pooled_rows: Int64 = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # rows that embeddings sum up


@dataclass(frozen=True, slots=True)
class Output:
    """What a forward pass returns: logits f[R, V] of the logit rows, then of the prompt rows; tapped features."""

    logits: torch.Tensor
    hidden: torch.Tensor | None = None  # f[T, D] after the final norm
    prompt_logits: torch.Tensor | None = None
    features: torch.Tensor | None = None
    pooled: torch.Tensor | None = None  # f[pooled rows, D] after the final norm


@dataclass(frozen=True, slots=True)
class Verdict:
    """What verification decided for each request of a step; ``tokens`` = accepted draft tokens and one more."""

    tokens: list[list[int]]
    path: list[list[int]]  # accepted draft nodes, in order
    rows: list[list[int]]  # per token, the logit row (index into logit_rows) that it was sampled from
    dead_ends: set[int] = field(default_factory=set)  # requests without a token because their controls allow none
    samples: Int64 | None = None  # [B, N + 1] match's sample behind the last known token and each node; -1: no row
    best: Int32 | None = None  # [B, N + 1, num_best] the likeliest tokens there, best first; -1: no row
