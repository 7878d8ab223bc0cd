"""Knows how well models predict text they have not seen, fed with the text itself; knows nothing of generation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional

from paceline.training.data import DataError
from paceline.training.ngram import ORDER, NgramModel
from paceline.training.stream import TokenStream

ROWS_AT_ONCE = 8
BASELINE = f"interpolated Kneser-Ney {ORDER}-gram"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Rows of unseen text: ``rows`` int64[R, T + 1], their places in ``stream``; a row's first token is only read."""

    stream: TokenStream
    rows: torch.Tensor

    @classmethod
    def of(cls, stream: TokenStream, *, length: int, count: int) -> HeldOut:
        """Up to ``count`` rows, spread over the stream."""
        length = min(length, len(stream.tokens) - 1)
        if length < 1:
            raise DataError("the held-out data have no token to predict\nGive more held-out data.")
        available = (len(stream.tokens) - 1) // length
        count = min(count, available)
        starts = torch.tensor([number * available // count * length for number in range(count)])
        return cls(stream, starts[:, None] + torch.arange(length + 1))

    @property
    def tokens(self) -> torch.Tensor:
        return self.stream.tokens[self.rows]

    @property
    def reply(self) -> torch.Tensor:
        return self.stream.reply[self.rows]

    @property
    def num_predicted(self) -> int:
        return self.rows[:, 1:].numel()

    def num_bytes(self, tokenizer: Tokenizer) -> int:
        """Bytes of the text that the predicted tokens write; markers write none."""
        texts = tokenizer.decode_batch(self.tokens[:, 1:].tolist(), skip_special_tokens=True)
        return sum(len(text.encode()) for text in texts)


def _figures(nats: float, held_out: HeldOut, num_bytes: int) -> dict[str, float]:
    per_byte = nats / math.log(2) / max(1, num_bytes)
    return {"nats_per_token": nats / held_out.num_predicted, "bits_per_byte": per_byte}


@torch.inference_mode()
def model_loss(model: nn.Module, held_out: HeldOut, num_bytes: int) -> dict[str, float]:
    """In float32, every row without what lies before it."""
    nats = 0.0
    for part in held_out.tokens.split(ROWS_AT_ONCE):
        tokens = part.to(next(model.parameters()).device)
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        nats += float(functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"))
    return _figures(nats, held_out, num_bytes)


def baseline_loss(learnt: TokenStream, held_out: HeldOut, num_bytes: int, *, vocab_size: int) -> dict[str, Any]:
    """The n-gram model on the same tokens; at the beginning of a row it also sees the few before it."""
    model = NgramModel(learnt.tokens.numpy(), vocab_size=vocab_size)
    losses = torch.from_numpy(model.losses(held_out.stream.tokens.numpy()))
    return {"model": BASELINE} | _figures(float(losses[held_out.rows[:, 1:]].sum()), held_out, num_bytes)


@torch.inference_mode()
def agreement(draft: nn.Module, target: nn.Module, held_out: HeldOut) -> dict[str, float] | None:
    """On an assistant's held-out tokens, teacher-forced: how often the greedy choices agree, and sum(min(p, q)).

    None where no assistant wrote anything.
    """
    equal, overlap, count = 0.0, 0.0, 0
    device = next(target.parameters()).device
    for part, reply in zip(held_out.tokens.split(ROWS_AT_ONCE), held_out.reply.split(ROWS_AT_ONCE), strict=True):
        tokens, chosen = part.to(device), reply[:, 1:].flatten().to(device)
        p, q = (_chances(model, tokens[:, :-1], chosen) for model in (target, draft))
        equal += float((p.argmax(-1) == q.argmax(-1)).sum())
        overlap += float(torch.minimum(p, q).sum())
        count += int(chosen.sum())
    return {"greedy_agreement": equal / count, "overlap": overlap / count, "tokens": count} if count else None


def _chances(model: nn.Module, tokens: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """[N, V] probabilities after the ``chosen`` bool[B * T] of tokens int64[B, T]."""
    logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return functional.softmax(logits.flatten(0, 1)[chosen], dim=-1)


def repeated_share(replies: Sequence[Sequence[int]], *, order: int = 4) -> float | None:
    """Share of the n-grams of replies that occurred earlier in the same reply; None where there are none."""
    total = repeated = 0
    for reply in replies:
        grams = [tuple(reply[place : place + order]) for place in range(len(reply) - order + 1)]
        total += len(grams)
        repeated += len(grams) - len(set(grams))
    return repeated / total if total else None
