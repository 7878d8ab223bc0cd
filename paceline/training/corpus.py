"""Knows what a run learns from and what it is measured on; knows nothing of how."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from paceline.training.data import DataError, DataSource, Document, read_documents

HELD_OUT_SHARE = 0.02
MAX_HELD_OUT = 1000


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents to learn from, by the weight that the user gave them, and documents that stay unseen."""

    by_weight: Mapping[float, Sequence[Document]]
    held_out: Sequence[Document]

    @property
    def documents(self) -> list[Document]:
        return [document for documents in self.by_weight.values() for document in documents]


def read_corpus(
    data: Iterable[str], held_out: Iterable[str], *, seed: int, generated: Sequence[Document] = ()
) -> Corpus:
    """Reads the sources; ``generated`` documents join those of weight 1.

    Without ``held_out``, one document in fifty (at most a thousand) is set aside and not learnt from.
    """
    sources = [DataSource.parse(text) for text in data]
    by_weight: dict[float, list[Document]] = {}
    for source in sources:
        by_weight.setdefault(source.weight, []).extend(read_documents(source.files()))
    if generated:
        by_weight.setdefault(1.0, []).extend(generated)
    named = [DataSource.parse(text) for text in held_out]
    if named:
        return Corpus(by_weight, [one for source in named for one in read_documents(source.files())])
    return _set_aside(by_weight, seed)


def _set_aside(by_weight: Mapping[float, Sequence[Document]], seed: int) -> Corpus:
    places = [(weight, index) for weight, documents in by_weight.items() for index in range(len(documents))]
    if len(places) < 2:
        raise DataError("one document cannot be both learnt from and held out\nGive more data, or --held-out FILE.")
    count = min(MAX_HELD_OUT, max(1, round(len(places) * HELD_OUT_SHARE)))
    chosen = set(random.Random(f"held out {seed}").sample(places, count))
    kept = {
        weight: [one for index, one in enumerate(documents) if (weight, index) not in chosen]
        for weight, documents in by_weight.items()
    }
    unseen = [by_weight[weight][index] for weight, index in sorted(chosen)]
    return Corpus({weight: documents for weight, documents in kept.items() if documents}, unseen)
