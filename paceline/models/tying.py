"""Knows whether a checkpoint's output matrix is its embedding table: what its tensors say counts before config.json."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from paceline.models.checkpoint import FLOATS, TensorEntry, opened
from paceline.models.config import DTYPES, ModelConfig
from paceline.models.family import Family, TensorNames
from paceline.models.placing import names_of
from paceline.models.quantization import HEAD

TABLE = "embedding.tokens"
"""The embedding table among the names of our own modules."""
COMPARED_BYTES = 16 * 2**20
"""Of each of two tensors, held at once while they are compared."""

log = logging.getLogger(__name__)


def settle_head(config: ModelConfig, family: Family, entries: Sequence[TensorEntry]) -> tuple[ModelConfig, Family]:
    """Whether output matrix and table of a model whose config ties them are one, and under which names it is stored.

    They are one if the checkpoint has only one of them, whichever it is, or both with the same numbers; else each is
    its own, as in transformers 5. Where only a quantised output matrix is stored, the table has its numbers.

    Raises:
        CheckpointError: a file that cannot be read.
    """
    if not config.tied:
        return config, family
    heads, tables = _stored(HEAD, family, entries), _stored(TABLE, family, entries)
    if not heads:
        return config, family
    whole = [entry for entry in heads if entry.name.endswith(".weight") and entry.dtype in FLOATS]
    if whole and not tables:
        return config, _read_as_table(family, whole[0])
    if whole and _equal(whole[0], tables[0]):
        return config, family
    if whole:
        log.warning(
            "%s: config.json ties the output matrix to the embedding table, yet %r differs from %r: both are used\n"
            "Set tie_word_embeddings to false in config.json to be rid of this warning.",
            whole[0].file.parent,
            whole[0].name,
            tables[0].name,
        )
    if not whole and not tables:
        # Only the integers of the output matrix: it is loaded as it is, and the table made of it.
        family = replace(family, names={name: part for name, part in family.names.items() if part.module != TABLE})
    return replace(config, tied=False), family


def is_stored(module: str, family: TensorNames) -> bool:
    """Whether tensors fill one of our modules; the table of a tied pair may be made of the output matrix."""
    return any(part.module == module for part in family.names.values())


def _stored(module: str, family: TensorNames, entries: Sequence[TensorEntry]) -> list[TensorEntry]:
    """The tensors that fill one of our modules: one, or several of a quantised matrix."""
    prefixes = tuple(f"{theirs}." for theirs, part in family.names.items() if part.module == module)
    return [entry for entry in entries if any(name.startswith(prefixes) for name in names_of(entry, family))]


def _read_as_table(family: Family, head: TensorEntry) -> Family:
    """The family, to which the only matrix of the pair is the table."""
    table = next(theirs for theirs, part in family.names.items() if part.module == TABLE)
    renamed = (head.name.removesuffix("weight"), f"{table}.")
    return replace(family, prefixes=(*family.prefixes, renamed))


def _equal(one: TensorEntry, other: TensorEntry) -> bool:
    """Whether two tensors hold the same numbers, as far as the coarser of their types tells."""
    if one.shape != other.shape or other.dtype not in FLOATS:
        return False
    dtype = min((DTYPES[FLOATS[entry.dtype]] for entry in (one, other)), key=lambda dtype: dtype.itemsize)
    return all(torch.equal(a.to(dtype), b.to(dtype)) for a, b in zip(pieces(one), pieces(other), strict=True))


def pieces(entry: TensorEntry) -> Iterator[torch.Tensor]:
    """The tensor, some rows at a time."""
    rows = entry.shape[0] if entry.shape else 0
    step = max(1, COMPARED_BYTES * rows // max(entry.num_bytes, 1))
    with opened(entry.file) as tensors:
        part = tensors.get_slice(entry.name)
        for first in range(0, rows, step):
            yield part[first : first + step]
