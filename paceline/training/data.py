"""Knows what training files look like and names what is wrong with one; knows nothing of tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from paceline.core.errors import PacelineError

ROLES = ("system", "user", "assistant")
TEXT_SUFFIX = ".txt"
SUFFIXES = (".jsonl", TEXT_SUFFIX)
PIECE_CHARACTERS = 8000
"""A book is cut, between paragraphs, into documents of about this length."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# What a calculator would have been asked, in GSM8K's answers: 48/2 = <<48/2=24>>24.
CALCULATION = re.compile(r"<<[^<>\n]*>>")
BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")
SHAPE = 'expected {"turns": [...]} or {"question": ..., "answer": ...}'


class DataError(PacelineError, ValueError):
    """Training data that cannot be used; the message names the file and the line."""


@dataclass(frozen=True, slots=True)
class Turn:
    role: str | None
    """None: plain text, around which no markers are written."""
    text: str


Document = tuple[Turn, ...]
"""A dialogue, or a piece of plain text as a single turn."""


@dataclass(frozen=True, slots=True)
class DataSource:
    """A file or folder, and how often an epoch shows its rows."""

    path: Path
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> DataSource:
        """Reads ``path`` or ``path:weight``; a colon belongs to the path where no number follows it."""
        path, colon, weight = text.rpartition(":")
        if not colon or not path or Path(text).exists():
            return cls(Path(text).expanduser())
        try:
            value = float(weight)
        except ValueError:
            return cls(Path(text).expanduser())
        if not 0 < value <= 1000:
            raise DataError(f"{text}: the weight must be above 0 and at most 1000\nFor example {path}:2.")
        return cls(Path(path).expanduser(), value)

    def files(self) -> list[Path]:
        """The file itself, or a folder's .jsonl and .txt files in the order of their names."""
        if self.path.is_dir():
            found = sorted(file for file in self.path.iterdir() if file.suffix in SUFFIXES and file.is_file())
            if not found:
                raise DataError(f"{self.path} holds no {' or '.join(SUFFIXES)} file\nName files, or another folder.")
            return found
        if not self.path.is_file():
            raise DataError(f"there is no file {self.path}\nName a .jsonl or .txt file, or a folder of them.")
        return [self.path]


def read_documents(paths: Iterable[str | Path]) -> list[Document]:
    """Reads dialogues and plain text.

    A ``.txt`` file is plain text. Any other holds a JSON object per line: ``{"turns": [{"role", "text"}, ...]}``, or
    ``{"question", "answer"}``.

    Raises:
        DataError: with ``file:line`` and what is wrong there; also for a file that holds nothing.
    """
    documents: list[Document] = []
    for path in map(Path, paths):
        before = len(documents)
        documents += _read_text(path) if path.suffix == TEXT_SUFFIX else _read_lines(path)
        if len(documents) == before:
            raise DataError(f"{path}:1: the file is empty\nRemove it from the data, or fill it.")
    return documents


def _read_text(path: Path) -> Iterator[Document]:
    raw = path.read_bytes().removeprefix(BYTE_ORDER_MARK)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise _not_utf8(f"{path}:{line}", error.start - (raw.rfind(b"\n", 0, error.start) + 1)) from None
    piece = ""
    for paragraph in BLANK_LINES.split(text.replace("\r\n", "\n").strip()):
        piece = f"{piece}\n\n{paragraph}" if piece else paragraph
        if len(piece) >= PIECE_CHARACTERS:
            yield (Turn(None, piece),)
            piece = ""
    if piece:
        yield (Turn(None, piece),)


def _read_lines(path: Path) -> Iterator[Document]:
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            line = raw.removeprefix(BYTE_ORDER_MARK) if number == 1 else raw
            if line.strip():
                yield _parse(line, f"{path}:{number}")


def _not_utf8(where: str, byte: int) -> DataError:
    return DataError(f"{where}: not UTF-8 at byte {byte} of the line\nSave the file as UTF-8.")


def _wrong(where: str, cause: str) -> DataError:
    return DataError(f"{where}: {cause}\nCorrect or remove that line.")


def _parse(raw: bytes, where: str) -> Document:
    try:
        record = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _not_utf8(where, error.start) from None
    except json.JSONDecodeError as error:
        raise _wrong(where, f"not JSON ({error.msg})") from None
    except RecursionError:
        raise _wrong(where, "not JSON (nested too deeply)") from None
    if not isinstance(record, dict):
        raise _wrong(where, SHAPE)
    if "question" in record:
        return _question(record, where)
    turns = record.get("turns")
    if not isinstance(turns, list) or not turns:
        raise _wrong(where, SHAPE)
    return tuple(_parse_turn(turn, where) for turn in turns)


def _question(record: dict[str, object], where: str) -> Document:
    answer = record.get("answer")
    if isinstance(answer, str):
        answer = CALCULATION.sub("", answer)
    pair = (("user", record["question"]), ("assistant", answer))
    return tuple(_parse_turn({"role": role, "text": text}, where) for role, text in pair)


def _parse_turn(turn: object, where: str) -> Turn:
    if not isinstance(turn, dict) or turn.get("role") not in ROLES or not isinstance(turn.get("text"), str):
        raise _wrong(where, f'each turn needs "role" (one of {", ".join(ROLES)}) and "text" (a string)')
    text = turn["text"].strip()
    if not text:
        raise _wrong(where, f"the text of a turn of the {turn['role']} is empty")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise _wrong(where, "the text holds half of a surrogate pair, which UTF-8 cannot write")
    return Turn(turn["role"], text)


def texts_of(documents: Iterable[Sequence[Turn]]) -> Iterator[str]:
    return (turn.text for document in documents for turn in document)


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
