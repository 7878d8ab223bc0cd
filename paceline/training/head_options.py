"""Knows the options of the recipes that train a small head beside a target; knows nothing of what a head is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from paceline.core.settings import About
from paceline.training.options import RunOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOptions(RunOptions):
    """What every recipe of a head has."""

    target: Annotated[Path, About("Directory of the model that the head drafts for.")]
    replies: Annotated[int, About("Dialogues whose replies the target writes anew.", low=1)] = 2000
    reply_tokens: Annotated[int, About("Longest reply, in tokens.", low=1)] = 96
    replies_from: Annotated[
        Path | None, About("Take the replies from this replies.jsonl, which another run of the same target wrote.")
    ] = None
    length: Annotated[int, About("Tokens per row.", low=8)] = 256
    num_speculative_tokens: Annotated[int, About("Tokens that the head learns to draft in a row.", low=1, high=16)] = 4
    places: Annotated[
        float, About("Share of a row's places, at most, from which a step learns to draft.", above=0, high=1)
    ] = 0.5
    export_only: Annotated[bool, About("Do not train: write and measure what the last checkpoint holds.")] = False

    @property
    def vocabulary(self) -> int:
        """How many tokens it drafts from; 0 is all."""
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReducedOptions(HeadOptions):
    """What a head has that drafts from a vocabulary of its own."""

    draft_vocab_size: Annotated[
        int, About("The most frequent tokens of the replies, from which it drafts; 0 is all of them.", low=0)
    ] = 2048
    train_unembedding: Annotated[
        bool, About("Train the unembedding too, instead of keeping the target's rows of those tokens.")
    ] = False

    @property
    def vocabulary(self) -> int:
        return self.draft_vocab_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Eagle3Options(ReducedOptions):
    """Trains an EAGLE-3 head: one layer on three of the target's states."""

    intermediate_size: Annotated[int, About("Width of its MLP; 0 is the target's.", low=0)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MedusaOptions(ReducedOptions):
    """Trains Medusa heads: a residual block for each of the next tokens."""

    num_layers: Annotated[int, About("Residual blocks of a head.", low=1)] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MtpOptions(HeadOptions):
    """Trains a multi-token prediction module: one layer, with the target's embedding and unembedding."""

    num_speculative_tokens: Annotated[int, About("Tokens that the head learns to draft in a row.", low=1, high=16)] = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DFlashOptions(ReducedOptions):
    """Trains a DFlash head: a block of tokens in one pass, with the target's states as its context."""

    draft_vocab_size: Annotated[
        int, About("The most frequent tokens of the replies, from which it drafts; 0 is all of them.", low=0)
    ] = 0
    places: Annotated[
        float, About("Share of a row's places, at most, from which a step learns to draft.", above=0, high=1)
    ] = 0.125
    num_layers: Annotated[int, About("Layers.", low=1)] = 2
    intermediate_size: Annotated[int, About("Width of their MLPs; 0 is the target's.", low=0)] = 0
