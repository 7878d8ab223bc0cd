"""Knows how a dialogue becomes a prompt, and a dialogue again with other replies; knows nothing of who writes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer

from paceline.training.data import ChatFormat, Document
from paceline.training.stream import TokenStream, marker_ids


class Conversation:
    """A dialogue whose assistant's turns somebody else writes: take a ``prompt``, give an answer, until None comes.

    Args:
        room: most tokens of a prompt; a longer conversation ends before.
    """

    def __init__(self, document: Document, tokenizer: Tokenizer, chat: ChatFormat, *, room: int) -> None:
        self.room = room
        ids_of = marker_ids(tokenizer, chat)
        self.assistant, self.end = ids_of[chat.role("assistant")], ids_of[chat.end]
        self.tokens, self.reply = [ids_of[chat.bos]], [False]
        self._segments: list[list[int]] = [[]]
        """What people say before each of the assistant's turns; after the last one nothing is asked."""
        for turn in document:
            if turn.role == "assistant":
                self._segments.append([])
            elif turn.role is not None:
                ids = tokenizer.encode(turn.text, add_special_tokens=False).ids
                self._segments[-1] += [ids_of[chat.role(turn.role)], *ids, self.end]
        del self._segments[-1]

    def prompt(self) -> list[int] | None:
        """The tokens up to where the assistant begins to write; None at the end of the dialogue."""
        if not self._segments:
            return None
        said = [*self._segments.pop(0), self.assistant]
        if len(self.tokens) + len(said) > self.room:
            self._segments.clear()
            return None
        self.tokens += said
        self.reply += [False] * len(said)
        return list(self.tokens)

    def answer(self, tokens: Sequence[int]) -> None:
        """Takes what was written; an answer that was cut off gets an <end> that nobody is to learn."""
        self.tokens += tokens
        self.reply += [True] * len(tokens)
        if not tokens or tokens[-1] != self.end:
            self.tokens.append(self.end)
            self.reply.append(False)

    def stream(self) -> TokenStream:
        return TokenStream(torch.tensor(self.tokens), torch.tensor(self.reply))
