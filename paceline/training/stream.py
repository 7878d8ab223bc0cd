"""Knows how documents become tokens, and which tokens a step sees; knows nothing of models or losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from paceline.core.errors import ConfigError
from paceline.training.data import ChatFormat, DataError, Document, texts_of

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenStream:
    """Documents end to end: ``tokens`` int64[n]; ``reply`` bool[n], true where an assistant wrote the token."""

    tokens: torch.Tensor
    reply: torch.Tensor

    @classmethod
    def joined(cls, streams: Sequence[TokenStream]) -> TokenStream:
        return cls(torch.cat([one.tokens for one in streams]), torch.cat([one.reply for one in streams]))


def marker_ids(tokenizer: Tokenizer, chat: ChatFormat) -> Mapping[str, int]:
    """The id of every special token.

    Raises:
        ConfigError: the tokenizer lacks one, so its model has seen other dialogues than these recipes write.
    """
    ids = {}
    for token in chat.special_tokens():
        number = tokenizer.token_to_id(token)
        if number is None:
            raise ConfigError(
                f"the tokenizer has no token {token}\nThese recipes work on targets that `paceline train target` made."
            )
        ids[token] = number
    return ids


def encode_each(documents: Sequence[Document], tokenizer: Tokenizer, chat: ChatFormat) -> list[TokenStream]:
    """One stream per document. A reply's closing ``<end>`` counts as part of the reply; plain text has no ``<end>``."""
    encoded = iter(tokenizer.encode_batch(list(texts_of(documents)), add_special_tokens=False))
    ids_of = marker_ids(tokenizer, chat)
    streams = []
    for document in documents:
        tokens, reply = [ids_of[chat.bos]], [False]
        for turn in document:
            ids = next(encoded).ids
            if turn.role is None:
                tokens += ids
                reply += [False] * len(ids)
            else:
                tokens += [ids_of[chat.role(turn.role)], *ids, ids_of[chat.end]]
                reply += [False] + [turn.role == "assistant"] * (len(ids) + 1)
        streams.append(TokenStream(torch.tensor(tokens), torch.tensor(reply)))
    return streams


def encode(documents: Sequence[Document], tokenizer: Tokenizer, chat: ChatFormat) -> TokenStream:
    """All documents in one stream."""
    return TokenStream.joined(encode_each(documents, tokenizer, chat))


@dataclass(frozen=True, slots=True)
class WeightedStream:
    """A stream, and how often an epoch shows each of its rows: 2 is twice, 0.5 every other epoch on average."""

    stream: TokenStream
    weight: float = 1.0


class Blocks:
    """Fixed-length training rows cut from streams; which rows a step sees depends on (seed, step) alone.

    That is what makes a resumed run equal to one that never stopped.
    """

    def __init__(self, parts: Sequence[WeightedStream], *, length: int, batch_size: int, seed: int) -> None:
        self.parts, self.length, self.batch_size, self.seed = parts, length, batch_size, seed
        self.num_rows = [_num_rows(part, length) for part in parts]
        self.counts = [round(rows * part.weight) for rows, part in zip(self.num_rows, parts, strict=True)]
        if sum(self.counts) < batch_size:
            raise DataError(
                f"the data give {sum(self.counts)} rows of {length} tokens, fewer than one batch of {batch_size}\n"
                f"Lower --batch-size to {max(1, sum(self.counts))}, lower --length, or give more data."
            )
        self._epoch, self._rows = -1, np.zeros((0, 2), dtype=np.int64)

    @property
    def steps_per_epoch(self) -> int:
        return sum(self.counts) // self.batch_size

    @property
    def num_tokens(self) -> int:
        return sum(len(part.stream.tokens) for part in self.parts)

    def batch(self, step: int, parts: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (tokens int64[B, length + 1], reply bool[B, length + 1]) of this step.

        Args:
            parts: cuts every row into that many shorter ones: [B * parts, length // parts + 1].
        """
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._rows = epoch, self._shuffled(epoch)
        chosen = self._rows[index * self.batch_size : (index + 1) * self.batch_size]
        length = self.length // parts
        starts = [(self.parts[part].stream, start + k * length) for part, start in chosen for k in range(parts)]
        spans = [(stream, slice(start, start + length + 1)) for stream, start in starts]
        tokens = torch.stack([stream.tokens[span] for stream, span in spans])
        return tokens, torch.stack([stream.reply[span] for stream, span in spans])

    def _shuffled(self, epoch: int) -> Int64:
        """[N, 2] part and first token of every row of the epoch, in the order in which steps take them."""
        random = np.random.default_rng((self.seed, epoch))
        # Rows begin elsewhere in every epoch, so that the same tokens meet other neighbours.
        shift = int(random.integers(0, self.length))
        rows = []
        for number, part in enumerate(self.parts):
            available, count = self.num_rows[number], self.counts[number]
            if not count:
                continue
            whole, rest = divmod(count, available)
            order = np.concatenate([*[np.arange(available)] * whole, random.permutation(available)[:rest]])
            room = len(part.stream.tokens) - 1 - available * self.length
            starts = order * self.length + min(shift, room)
            rows.append(np.stack([np.full(count, number), starts], axis=1))
        return random.permutation(np.concatenate(rows).astype(np.int64))


def _num_rows(part: WeightedStream, length: int) -> int:
    """How many rows fit; where there are many, one is given up so that they may begin anywhere."""
    rows = (len(part.stream.tokens) - 1) // length
    return rows - 1 if rows > 4 else rows
