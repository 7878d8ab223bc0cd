"""Knows how to make prompts of exact shapes from random tokens, alone or behind a shared beginning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.benchmark.workloads.dialogue import TokenDialogue
from paceline.core.errors import ConfigError
from paceline.text import Tokenizer


def plain_token_ids(vocab_size: int, tokenizer: Tokenizer | None, ends: frozenset[int]) -> list[int]:
    """Token ids that a prompt may be made of: none of special meaning."""
    special = ends | (tokenizer.special_ids if tokenizer is not None else frozenset())
    return [token for token in range(vocab_size) if token not in special]


def synthetic(count: int, length: int, *, vocabulary: Sequence[int], seed: int) -> list[TokenDialogue]:
    """``count`` prompts of exactly ``length`` random tokens; the same seed gives the same."""
    return shared_prefix(count, 0, length, 1, vocabulary=vocabulary, seed=seed, category="synthetic")


def shared_prefix(
    count: int,
    prefix_length: int,
    turn_length: int,
    num_turns: int,
    *,
    vocabulary: Sequence[int],
    seed: int,
    category: str = "shared prefix",
) -> list[TokenDialogue]:
    """``count`` dialogues of ``num_turns`` turns: each begins with the same ``prefix_length`` tokens, and each turn
    adds ``turn_length`` tokens of its own behind the answer before it."""
    if min(count, turn_length, num_turns) < 1 or prefix_length < 0 or not vocabulary:
        raise ConfigError(
            f"{count} dialogues of {num_turns} turns of {turn_length} tokens cannot be made\nAll must be at least 1."
        )
    random = np.random.default_rng((seed % 2**64, prefix_length, turn_length, num_turns))
    ids = np.asarray(vocabulary)
    prefix = ids[random.integers(len(ids), size=prefix_length)].tolist()
    dialogues = []
    for _ in range(count):
        drawn = ids[random.integers(len(ids), size=(num_turns, turn_length))].tolist()
        turns = [tuple(turn) for turn in drawn]
        dialogues.append(TokenDialogue((tuple(prefix) + turns[0], *turns[1:]), category))
    return dialogues
