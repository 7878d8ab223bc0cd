"""Knows which of a target's tokens a head drafts from, and how published checkpoints write that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from paceline.core.errors import ConfigError
from paceline.training.stream import TokenStream


@dataclass(frozen=True, slots=True)
class DraftVocabulary:
    """The target's ids of draft tokens, i64[D] ascending; all of them where the head has no vocabulary of its own."""

    ids: torch.Tensor
    size: int
    """Of the target's vocabulary."""

    @classmethod
    def of(cls, streams: Sequence[TokenStream], size: int, count: int) -> DraftVocabulary:
        """The ``count`` most frequent tokens of the replies; 0 is all. Ties go to the lower id.

        Raises:
            ConfigError: the target has fewer.
        """
        if count > size:
            raise ConfigError(f"draft_vocab_size is {count}, but the target has {size} tokens\nLower it, or give 0.")
        seen = torch.cat([one.tokens[one.reply] for one in streams])
        often = torch.bincount(seen, minlength=size)
        chosen = often.argsort(descending=True, stable=True)[: count or size]
        return cls(chosen.sort().values, size)

    @property
    def is_whole(self) -> bool:
        return len(self.ids) == self.size

    @property
    def offsets(self) -> torch.Tensor:
        """``d2t`` i64[D]: what must be added to a draft token's number to get the target's id."""
        return self.ids - torch.arange(len(self.ids))

    @property
    def members(self) -> torch.Tensor:
        """``t2d`` bool[V]: which of the target's tokens can be drafted."""
        members = torch.zeros(self.size, dtype=torch.bool)
        members[self.ids] = True
        return members
