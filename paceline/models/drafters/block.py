"""Knows what modules have in common that draft several tokens in one pass: rows of a mask token, one per token to come.

How a step drafts K tokens with one, behind N known tokens at slots 0 to N - 1. As with every draft module the row of
the known token at slot s reads what was kept of slot s - 1, and there is no row at slot 0 (``RowSpec.first_slot`` 1).

- **Without ``context``** (P-EAGLE): one stage of the known tokens that the module's cache lacks and K - 1 nodes. The
  nodes are a chain of tokens ``mask_token_id``; they read ``mask_inputs()``. The last known row's sample is the first
  drafted token, node i's is number i + 2.
- **With ``context``** (DFlash): two stages over the same K/V pages, all of whose positions are one less than usual
  (``position_shift`` -1). First ``context`` runs over the known tokens that the cache lacks, fed with what was kept;
  it only writes K/V, so let its rows see only themselves (a ``first_slot`` beyond all slots), and sample nothing.
  Then the module runs over K + 1 nodes behind the known tokens, K if ``samples_first``: node 0 is the last known token
  once more, the others are ``mask_token_id``; it reads nothing beside the tokens. If ``bidirectional`` each node sees
  all nodes (all tree bits set). Node i's sample is drafted token i, or i + 1 if ``samples_first``; node 0 is not
  sampled otherwise. K is at most ``max_tokens``.

What mask rows leave in the cache is no token's: the next step feeds all that was accepted, and starts where the known
tokens ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from paceline.layers.placement import Placement
from paceline.models.base import CausalLM
from paceline.models.config import Fields
from paceline.models.drafters.module import DraftConfig, DraftModule
from paceline.models.drafters.source import DraftSource
from paceline.models.drafters.vocabulary import OTHER

MASK_KEYS = ("mask_token_id", "ptd_token_id", "pard_token")
"""As the makers call the mask token in config.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSpec:
    """How the rows of one pass are laid out, see above."""

    mask_token_id: int
    max_tokens: int | None = None
    """None: as many as wanted."""
    bidirectional: bool = False
    samples_first: bool = False


class MaskRow(nn.Module):
    """What stands for features that nobody knows yet, as wide as they are."""

    def __init__(self, size: int, *, on: Placement) -> None:
        super().__init__()
        self.weight = on.parameter(1, 1, size)


class BlockDraftModule(DraftModule):
    """A draft module whose further rows read no token that was drafted: all of them go in one pass."""

    context: CausalLM | None
    """What writes K/V of known tokens, if the module's own rows do not."""

    def __init__(
        self, config: DraftConfig, *, block: BlockSpec, on: Placement, mask_size: int | None = None, **parts: Any
    ) -> None:
        """
        Args:
            config, on, parts: as of ``DraftModule``.
            block: how the rows of a pass are laid out.
            mask_size: width of the features that mask rows have learned to read, before they are fused.
        """
        super().__init__(config, on=on, **parts)
        self.block, self.context = block, None
        self.mask = None if mask_size is None else MaskRow(mask_size, on=on)

    def mask_inputs(self) -> torch.Tensor | None:
        """f[1, ``input_size``] what rows of the mask token read; None if they read nothing beside it."""
        if self.mask is None:
            return None
        fused: torch.Tensor = self.fuse(self.mask.weight.flatten(0, 1))
        return fused


def mask_token(source: DraftSource, *fields: Fields) -> int:
    """The mask token, as the first of ``fields`` that names it says.

    Raises:
        CheckpointError: none of them does, or it is no token of the target's.
    """
    found = [part.values[key] for part in fields for key in MASK_KEYS if key in part.values]
    if not found:
        raise source.misfit(
            "config.json names no mask token", f"Give {MASK_KEYS[0]}, the one that it was trained with."
        )
    num_tokens = source.target.config.vocab_size
    if type(found[0]) is not int or not 0 <= found[0] < num_tokens:
        raise source.misfit(f"{MASK_KEYS[0]} is {found[0]!r}, and the target has {num_tokens} tokens", OTHER)
    return found[0]
