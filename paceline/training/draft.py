"""The recipe of a draft: a smaller Llama that learns the target's distribution on replies the target wrote."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional

from paceline.training.compute import DTYPES, choose_device, mixed_precision
from paceline.training.corpus import Corpus, read_corpus
from paceline.training.data import ChatFormat, DataError, Document
from paceline.training.evaluate import Measured, measure
from paceline.training.hugging_face import copy_tokenizer, load_frozen, new_llama, save_model
from paceline.training.options import DraftOptions
from paceline.training.progress import Progress
from paceline.training.recipe import check_places, fit
from paceline.training.regenerate import regenerate
from paceline.training.stream import Blocks, WeightedStream, encode, marker_ids
from paceline.training.tokenizer import load_tokenizer

PLACES = 2048
"""Rows of logits are a multiple of this."""


def train_draft(options: DraftOptions, progress: Progress) -> Mapping[str, Any]:
    """Lets the target write replies, distils, writes the draft to ``options.out`` and measures it; returns the figures.

    Raises:
        PacelineError: naming the option, or the file and line, that cannot be used.
    """
    check_places(options)
    device = choose_device(options.device)
    chat = ChatFormat()
    target = load_frozen(options.target, device)
    tokenizer = load_tokenizer(options.target)
    corpus = read_corpus(options.data, options.held_out, seed=options.seed)
    parts = _parts(corpus, tokenizer, chat, options, progress)
    blocks = Blocks(parts, length=options.length, batch_size=options.batch_size, seed=options.seed)
    draft = _new_draft(options, target, tokenizer, chat).to(device)
    loss_of = partial(divergence, DTYPES[options.dtype], target)
    loss = fit(draft, loss_of, blocks, options, progress)
    copy_tokenizer(options.target, options.out)
    save_model(draft, options.out)
    del target, draft
    measured = Measured(options.target, options.out, corpus.held_out, encode(corpus.documents, tokenizer, chat))
    facts = {"recipe": "draft", "train_loss": loss}
    return measure(measured, options, progress, length=options.length, facts=facts, out=options.out / "metrics.json")


def _parts(
    corpus: Corpus, tokenizer: Tokenizer, chat: ChatFormat, options: DraftOptions, progress: Progress
) -> list[WeightedStream]:
    dialogues = [document for document in corpus.documents if _has_reply(document)]
    if not dialogues:
        raise DataError("no dialogue in the data has a reply of the assistant\nGive --data a file of dialogues.")
    parts = [WeightedStream(regenerate(dialogues, tokenizer, chat, options, progress))]
    if options.human_weight:
        parts.append(WeightedStream(encode(dialogues, tokenizer, chat), options.human_weight))
    return parts


def _has_reply(document: Document) -> bool:
    return any(turn.role == "assistant" for turn in document[1:])


def _new_draft(options: DraftOptions, target: Any, tokenizer: Tokenizer, chat: ChatFormat) -> Any:
    """The draft shares the target's vocabulary, context and special tokens, and nothing else."""
    ids = marker_ids(tokenizer, chat)
    return new_llama(
        options.shape,
        vocab_size=target.config.vocab_size,
        context=target.config.max_position_embeddings,
        bos=ids[chat.bos],
        end=ids[chat.end],
        pad=ids[chat.pad],
        seed=options.seed,
    )


@torch.compiler.disable  # type: ignore[untyped-decorator]
def reply_places(reply: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where in the flat rows [B * T] the next token is a reply's, from reply bool[B, T + 1], and how much it counts.

    Filled up to one of a few lengths with places that count nothing: every other length would be compiled anew.
    """
    counts = reply[:, 1:].flatten()
    places = counts.nonzero().squeeze(1)
    whole = min(-(-max(len(places), 1) // PLACES) * PLACES, len(counts))
    places = functional.pad(places, (0, whole - len(places)))
    weight = torch.zeros(whole, device=reply.device)
    weight[: int(counts.sum())] = 1 / max(int(counts.sum()), 1)
    return places, weight


def logits_at(dtype: torch.dtype, model: Any, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """fp32 logits [N, V] behind the places i64[N] of tokens int64[B, T], counted along the flat rows.

    The vocabulary is most of a small model's work, so it is spent on rows that count only.
    """
    with mixed_precision(tokens.device, dtype):
        hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
        logits: torch.Tensor = model.lm_head(hidden.flatten(0, 1)[places])
    return logits.float()


def divergence(
    dtype: torch.dtype, target: nn.Module, draft: nn.Module, tokens: torch.Tensor, reply: torch.Tensor
) -> torch.Tensor:
    """Mean KL(target || draft) in nats where reply bool[B, T + 1] marks tokens int64[B, T + 1] as an assistant's."""
    places, weight = reply_places(reply)
    with torch.no_grad():
        wanted = functional.log_softmax(logits_at(dtype, target, tokens[:, :-1], places), dim=-1)
    given = functional.log_softmax(logits_at(dtype, draft, tokens[:, :-1], places), dim=-1)
    each = functional.kl_div(given, wanted, log_target=True, reduction="none").sum(-1)
    loss: torch.Tensor = (each * weight).sum()
    return loss
