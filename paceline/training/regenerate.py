"""Knows how a target rewrites the assistant's turns of dialogues through the engine, and keeps what it wrote."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer

from paceline.core.errors import ConfigError
from paceline.core.params import SamplingParams
from paceline.engine.llm import LLM
from paceline.training.conversation import Conversation
from paceline.training.data import ChatFormat, DataError, Document
from paceline.training.head_options import HeadOptions
from paceline.training.options import DraftOptions
from paceline.training.progress import Advance, Progress
from paceline.training.stream import TokenStream

STAGE = "replies"
TEMPERATURES = (0.0, 0.7)
CHUNK = 64
"""Dialogues written together, and kept together: a killed run loses at most one chunk."""
MAX_TURNS = 1000
ReplyOptions = DraftOptions | HeadOptions


def regenerate(
    dialogues: Sequence[Document], tokenizer: Tokenizer, chat: ChatFormat, options: ReplyOptions, progress: Progress
) -> TokenStream:
    """The dialogues with every reply written by the target, which reads its own earlier replies.

    Half are greedy, half sampled at 0.7, as the engine will be asked for both. What was written lies in
    ``replies.jsonl`` under --work; a run that was killed goes on there.
    """
    kept = KeptReplies.of(options.work_directory / "replies.jsonl", dialogues, options.replies, options)
    return TokenStream.joined(write_replies(kept, tokenizer, chat, options, progress))


def write_replies(
    kept: KeptReplies, tokenizer: Tokenizer, chat: ChatFormat, options: ReplyOptions, progress: Progress
) -> list[TokenStream]:
    """The replies that are kept, with those that are still missing: a stream per dialogue."""
    chosen, streams = kept.dialogues, kept.read()
    if len(streams) < len(chosen):
        writer = ReplyWriter(tokenizer, chat, options)
        began, started, num_tokens = len(streams), time.monotonic(), 0
        while len(streams) < len(chosen):
            first = len(streams)
            written = writer.write(first, chosen[first : first + CHUNK])
            kept.append(written)
            streams += written
            num_tokens += sum(int(one.reply.sum()) for one in written)
            seconds = max(time.monotonic() - started, 1e-9)
            left = seconds / (len(streams) - began) * (len(chosen) - len(streams))
            progress.advance(Advance(STAGE, len(streams), len(chosen), num_tokens / seconds, left))
    return streams


def _key(chosen: Sequence[Document], options: ReplyOptions) -> str:
    """Differs wherever other replies would be written."""
    digest = hashlib.sha256(repr((options.seed, options.reply_tokens, TEMPERATURES, chosen)).encode())
    digest.update(weights_digest(options.target).encode())
    return digest.hexdigest()


def weights_digest(target: Path) -> str:
    """Differs between models."""
    digest = hashlib.sha256()
    for file in sorted(target.glob("*.safetensors")):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


class ReplyWriter:
    """The target in the engine, decoding plainly."""

    def __init__(self, tokenizer: Tokenizer, chat: ChatFormat, options: ReplyOptions) -> None:
        self.tokenizer, self.chat, self.options = tokenizer, chat, options
        self.llm = LLM(str(options.target), speculative_config=None, device=options.device, max_num_seqs=CHUNK)

    def write(self, first: int, documents: Sequence[Document]) -> list[TokenStream]:
        """Rewrites dialogues of which the first has the number ``first``; turn by turn, all of them side by side."""
        room = self.llm.max_model_len - self.options.reply_tokens
        talks = [Conversation(document, self.tokenizer, self.chat, room=room) for document in documents]
        waiting = list(enumerate(talks, first))
        for turn in range(MAX_TURNS):
            asked = [(number, talk, prompt) for number, talk in waiting if (prompt := talk.prompt()) is not None]
            if not asked:
                break
            params = [self._params(number, turn) for number, _, _ in asked]
            outputs = self.llm.generate([prompt for _, _, prompt in asked], params)
            for (_, talk, _), output in zip(asked, outputs, strict=True):
                talk.answer(output.outputs[0].token_ids)
            waiting = [(number, talk) for number, talk, _ in asked]
        return [talk.stream() for talk in talks]

    def _params(self, number: int, turn: int) -> SamplingParams:
        return SamplingParams(
            temperature=TEMPERATURES[number % len(TEMPERATURES)],
            max_tokens=self.options.reply_tokens,
            seed=random.Random(f"{self.options.seed} {number} {turn}").getrandbits(62),
            detokenize=False,
        )


class KeptReplies:
    """The file of what was written: a line that says by whom and for what, then a line per chunk."""

    def __init__(self, path: Path, dialogues: Sequence[Document], *, key: str, target: str) -> None:
        self.path, self.dialogues, self.key, self.target = path, dialogues, key, target

    @classmethod
    def of(cls, path: Path, dialogues: Sequence[Document], count: int, options: ReplyOptions) -> KeptReplies:
        """Up to ``count`` of the dialogues, chosen by the seed."""
        chosen = random.Random(f"replies {options.seed}").sample(dialogues, min(count, len(dialogues)))
        return cls(path, chosen, key=_key(chosen, options), target=weights_digest(options.target))

    def read(self) -> list[TokenStream]:
        """Everything kept so far; a line that a killed run left unfinished is dropped.

        Raises:
            ConfigError: the file was written for another target, other data or other options.
        """
        if not self.path.exists():
            return []
        whole = [line for line in self.path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        if not whole:
            self.path.unlink()
            return []
        if json.loads(whole[0]).get("key") != self.key:
            raise ConfigError(
                f"{self.path} was written by another target, or for other data or options\n"
                "Give the same as then, or another --work to begin anew."
            )
        self.path.write_bytes(b"".join(whole))
        return _streams(whole[1:])

    def append(self, streams: Sequence[TokenStream]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        records = [{"tokens": one.tokens.tolist(), "reply": one.reply.int().tolist()} for one in streams]
        head = "" if self.path.exists() else json.dumps({"key": self.key, "target": self.target}) + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(head + json.dumps(records) + "\n")


def _streams(lines: Sequence[bytes]) -> list[TokenStream]:
    records = [record for line in lines for record in json.loads(line)]
    return [TokenStream(torch.tensor(one["tokens"]), torch.tensor(one["reply"]).bool()) for one in records]


def read_replies(path: Path, target: Path) -> list[TokenStream]:
    """What another run let ``target`` write; a line that is unfinished is left out.

    Raises:
        ConfigError: another target wrote it.
        DataError: there is no such file, it holds no reply, or it is another kind of file.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}\nName the replies.jsonl under another run's --work.")
    first, *lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")] or [b""]
    try:
        head, streams = json.loads(first), _streams(lines)
        writer = head["target"]
    except (ValueError, TypeError, KeyError):
        raise DataError(f"{path} is no file of replies\nName the replies.jsonl under another run's --work.") from None
    if writer != weights_digest(target):
        raise ConfigError(
            f"{path} was written by another target than {target}\nLet this one write: drop --replies-from."
        )
    if not streams:
        raise DataError(f"{path} holds no reply\nLet the target write: drop --replies-from.")
    return streams
