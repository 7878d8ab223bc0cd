"""Knows which tokens a draft module's tables are of, and which of the target's tables it shares."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from paceline.models.checkpoint import TensorEntry
from paceline.models.config import Fields
from paceline.models.drafters.module import DraftConfig
from paceline.models.drafters.source import DraftSource, Tensors
from paceline.models.tying import pieces

TABLE = "embed_tokens"
HEAD = "lm_head"
OTHER = "Give the draft module that was trained for this target."


def shares_table(source: DraftSource, tensors: Tensors) -> bool:
    """Whether the embedding table is the target's: the checkpoint has none, or one with the same numbers.

    Raises:
        CheckpointError: a table of another vocabulary.
    """
    rows, expected = tensors.rows(TABLE), source.target.config.vocab_size
    if rows is None:
        return True
    if rows != expected:
        raise source.misfit(f"{TABLE} has {rows} tokens, and the target {expected}", OTHER)
    entry = tensors.by_name.get(f"{TABLE}.weight")
    table = source.target.embedding.tokens.weight
    return entry is not None and not table.is_meta and _same(entry, table)


def _same(entry: TensorEntry, table: torch.Tensor) -> bool:
    """Whether numbers are those of the target's table, as far as the coarser type tells."""
    if entry.shape != tuple(table.shape):
        return False
    parts: Iterator[torch.Tensor] = pieces(entry)
    first = 0
    for part in parts:
        other = table[first : first + len(part)].cpu()
        first += len(part)
        dtype = min((part.dtype, other.dtype), key=lambda dtype: dtype.itemsize)
        if not torch.equal(part.to(dtype), other.to(dtype)):
            return False
    return True


def check_sharing(source: DraftSource, config: DraftConfig, fields: Fields) -> None:
    """
    Raises:
        CheckpointError: the vocabulary, or the width of what is shared, is not the target's.
    """
    target = source.target
    said = fields.values.get("vocab_size", target.config.vocab_size)
    if said != target.config.vocab_size:
        raise source.misfit(f"vocab_size is {said}, and the target has {target.config.vocab_size} tokens", OTHER)
    widths = []
    if config.shares_table:
        widths.append((target.embedding.tokens.weight.shape[1], "embedding table"))
    if config.shares_head:
        widths.append((target.config.hidden_size if target.narrow is None else 0, "output matrix"))
    for width, what in widths:
        if width != config.hidden_size:
            raise source.misfit(
                f"hidden_size is {config.hidden_size}, and the target's {what}, which it shares, has {width}", OTHER
            )


def read_offsets(source: DraftSource, tensors: Tensors, head_rows: int) -> torch.Tensor | None:
    """The token of each row of the output matrix, from ``d2t``, which holds each token less its row.

    Raises:
        CheckpointError: tokens that there are not, or that come twice; fewer rows than tokens without ``d2t``.
    """
    num_tokens = source.target.config.vocab_size
    offsets = tensors.load("d2t")
    if offsets is None:
        if tensors.by_name and head_rows != num_tokens:
            raise source.misfit(f"{HEAD} has {head_rows} rows of {num_tokens} tokens, and there is no d2t", OTHER)
        return None
    if offsets.shape != (head_rows,) or offsets.is_floating_point():
        raise source.misfit(f"d2t is {offsets.dtype}{list(offsets.shape)}, and {HEAD} has {head_rows} rows", OTHER)
    tokens = torch.arange(head_rows) + offsets.long()
    return checked_tokens(source, tokens, "d2t")


def checked_tokens(source: DraftSource, tokens: torch.Tensor, what: str) -> torch.Tensor | None:
    """i64[rows] as it is, or None if it is all tokens in order.

    Raises:
        CheckpointError: tokens that the target has not, or that come twice.
    """
    num_tokens = source.target.config.vocab_size
    outside = tokens[(tokens < 0) | (tokens >= num_tokens)]
    if len(outside):
        raise source.misfit(f"{what} leads to token {int(outside[0])}, and the target has {num_tokens}", OTHER)
    values, counts = tokens.unique(return_counts=True)
    if len(values) < len(tokens):
        raise source.misfit(f"{what} leads to token {int(values[counts > 1][0])} twice", "Download the module again.")
    return None if torch.equal(tokens, torch.arange(num_tokens)) else tokens
