"""Knows how dialogue files become token blocks; knows nothing of models or losses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

ROLES = ("system", "user", "assistant")


class DataError(ValueError):
    """A training file that cannot be used; the message names the file and the line."""


@dataclass(frozen=True, slots=True)
class Turn:
    role: str
    text: str


Dialogue = tuple[Turn, ...]


def read_dialogues(paths: Iterable[str | Path]) -> list[Dialogue]:
    """Reads JSON lines of ``{"turns": [{"role", "text"}, ...]}``, or ``{"question", "answer"}``.

    Raises:
        DataError: with ``file:line`` and what is wrong there.
    """
    dialogues = [dialogue for path in paths for dialogue in _read_file(Path(path))]
    if not dialogues:
        raise DataError("the training data hold no dialogue\nGive --data a JSON-lines file with at least one record.")
    return dialogues


def _read_file(path: Path) -> Iterator[Dialogue]:
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            if raw.strip():
                yield _parse(raw, f"{path}:{number}")


def _parse(raw: bytes, where: str) -> Dialogue:
    try:
        record = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg})") from None
    if isinstance(record, dict) and "question" in record:
        pair = (("user", record["question"]), ("assistant", record.get("answer")))
        record = {"turns": [{"role": role, "text": text} for role, text in pair]}
    turns = record.get("turns") if isinstance(record, dict) else None
    if not isinstance(turns, list) or not turns:
        raise DataError(f'{where}: expected {{"turns": [...]}} or {{"question": ..., "answer": ...}}')
    return tuple(_parse_turn(turn, where) for turn in turns)


def _parse_turn(turn: object, where: str) -> Turn:
    if not isinstance(turn, dict) or turn.get("role") not in ROLES or not isinstance(turn.get("text"), str):
        raise DataError(f'{where}: each turn needs "role" (one of {", ".join(ROLES)}) and "text" (a string)')
    return Turn(turn["role"], turn["text"].strip())


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """The special tokens around a turn: ``<bos><role>text<end><role>...``."""

    bos: str = "<|bos|>"
    end: str = "<|end|>"
    pad: str = "<|pad|>"

    def special_tokens(self) -> list[str]:
        return [self.bos, self.end, self.pad, *(self.role(role) for role in ROLES)]

    def role(self, role: str) -> str:
        return f"<|{role}|>"

    def template(self) -> str:
        """A Jinja chat template that writes exactly what training saw."""
        return (
            f"{{{{ '{self.bos}' }}}}"
            "{% for message in messages %}"
            f"{{{{ '<|' + message['role'] + '|>' + (message['content'] | trim) + '{self.end}' }}}}"
            "{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
        )


@dataclass(frozen=True, slots=True)
class TokenStream:
    """All dialogues end to end: ``tokens`` int64[n]; ``reply`` bool[n], true where an assistant wrote the token."""

    tokens: torch.Tensor
    reply: torch.Tensor


def encode(dialogues: Sequence[Dialogue], tokenizer: Tokenizer, chat: ChatFormat) -> TokenStream:
    """Encodes dialogues into one stream; a reply's closing ``<end>`` counts as part of the reply."""
    texts = [turn.text for dialogue in dialogues for turn in dialogue]
    encoded = iter(tokenizer.encode_batch(texts, add_special_tokens=False))
    ids_of = {token: tokenizer.token_to_id(token) or 0 for token in chat.special_tokens()}
    bos, end = ids_of[chat.bos], ids_of[chat.end]
    tokens: list[int] = []
    reply: list[bool] = []
    for dialogue in dialogues:
        tokens.append(bos)
        reply.append(False)
        for turn in dialogue:
            ids = next(encoded).ids
            tokens += [ids_of[chat.role(turn.role)], *ids, end]
            reply += [False] + [turn.role == "assistant"] * (len(ids) + 1)
    return TokenStream(torch.tensor(tokens), torch.tensor(reply))


class Blocks:
    """Fixed-length training rows cut from a stream; which rows a step sees depends on (seed, step) alone.

    That is what makes a resumed run equal to one that never stopped.
    """

    def __init__(self, stream: TokenStream, *, length: int, batch_size: int, seed: int) -> None:
        self.stream, self.length, self.batch_size, self.seed = stream, length, batch_size, seed
        self.num_rows = (len(stream.tokens) - 1) // length
        if self.num_rows < batch_size:
            raise DataError(
                f"the data give {self.num_rows} rows of {length} tokens, fewer than one batch of {batch_size}\n"
                f"Lower --batch-size to {max(1, self.num_rows)}, lower --length, or give more data."
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.num_rows // self.batch_size

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (tokens int64[B, length + 1], reply bool[B, length + 1]) of this step."""
        epoch, index = divmod(step, self.steps_per_epoch)
        random = np.random.default_rng((self.seed, epoch))
        shift = int(random.integers(0, self.length)) if self.num_rows > self.batch_size * 4 else 0
        rows = random.permutation(self.num_rows - (shift > 0))
        chosen = rows[(index * self.batch_size + np.arange(self.batch_size)) % len(rows)]
        spans = torch.from_numpy(chosen)[:, None] * self.length + shift + torch.arange(self.length + 1)
        return self.stream.tokens[spans], self.stream.reply[spans]
