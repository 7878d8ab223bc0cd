"""Checks that what a proposer answers makes sense: arrays, nodes by depth, and what tokens were drawn from."""

from __future__ import annotations

from operator import index as whole_number

import numpy as np
import torch

from paceline.core.batch import Int32
from paceline.core.errors import ConfigError
from paceline.core.step import DraftTrees
from paceline.speculation.base import Proposer

MAX_NODES = 1024
TOLERANCE = 1e-3
"""How far from 1 the sum of what a token was drawn from may be."""


def drawn(drafts: DraftTrees, probs: torch.Tensor) -> Int32:
    """[B] how many nodes of each draft can be kept, being drawn from ``probs`` f[B, N, V].

    A draft ends before the first row that is no distribution. That row hangs on the nodes before it alone, so cutting
    there, in a tree also what lies beside it, is as good as never having drafted further, whereas dropping the whole
    draft would make the nodes before it count the less the oftener they lead to such a row. A token that its row gives
    no probability was not drawn from it: nothing true is known of such a draft, and it goes as a whole. That never
    befalls a token that was.
    """
    tokens = torch.from_numpy(drafts.tokens.astype(np.int64)).clamp(0, probs.shape[-1] - 1).to(probs.device)
    least, total = probs.amin(-1), probs.sum(-1)
    sound = (least >= 0) & ((total - 1.0).abs() < TOLERANCE)
    drawn = probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) > 0
    sound, drawn = torch.stack([sound, drawn]).cpu().numpy()
    kept = np.minimum(drafts.counts, np.cumprod(sound, axis=1).sum(axis=1))
    lying = ((np.arange(drafts.width) < kept[:, None]) & ~drawn).any(axis=1)
    return np.where(lying, 0, kept).astype(np.int32)


def node_table(inner: Proposer, max_depth: int) -> list[int]:
    """Nodes by depth, asked for once: a step relies on them, so they must be there and make sense.

    Raises:
        ConfigError: if the proposer raises or answers nonsense; the engine then does not start.
    """
    try:
        nodes = [0, *(whole_number(inner.num_nodes(depth)) for depth in range(1, max_depth + 1))]
    except Exception as error:
        raise ConfigError(
            f"the drafter cannot say how many nodes it drafts ({type(error).__name__}: {error})"
        ) from error
    if nodes != sorted(nodes) or nodes[-1] > MAX_NODES or (max_depth and nodes[1] < 1):
        raise ConfigError(
            f"the drafter drafts {nodes[1:]} nodes by depth\nThey must rise from 1 to at most {MAX_NODES}."
        )
    return nodes


def check_arrays(drafts: DraftTrees, num_requests: int, vocab_size: int, device: torch.device) -> None:
    shape = (num_requests, drafts.width)
    wanted = ((drafts.tokens, shape), (drafts.parents, shape), (drafts.counts, shape[:1]))
    if any(array.shape != expected or array.dtype.kind != "i" for array, expected in wanted):
        raise TypeError(f"drafts must be integer arrays of shape {shape}, with {num_requests} counts")
    probs = drafts.probs
    if probs is not None and (
        not isinstance(probs, torch.Tensor)
        or (probs.shape, probs.dtype, probs.device.type) != ((*shape, vocab_size), torch.float32, device.type)
    ):
        raise TypeError(f"what drafts were drawn from must be a float32 tensor of shape {(*shape, vocab_size)}")
