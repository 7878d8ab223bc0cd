"""The recipe of a target: a tokenizer and a small Llama, trained on dialogues and plain text."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional

from paceline.training.arithmetic import arithmetic_dialogues
from paceline.training.compute import DTYPES, choose_device, mixed_precision
from paceline.training.corpus import Corpus, read_corpus
from paceline.training.data import ChatFormat, texts_of
from paceline.training.evaluate import Measured, measure
from paceline.training.hugging_face import copy_tokenizer, new_llama, save_model
from paceline.training.options import TargetOptions
from paceline.training.progress import Progress
from paceline.training.recipe import check_places, fit
from paceline.training.stream import Blocks, TokenStream, WeightedStream, encode, marker_ids
from paceline.training.tokenizer import FILES, load_tokenizer, save_tokenizer, train_tokenizer


def train_target(options: TargetOptions, progress: Progress) -> Mapping[str, Any]:
    """Trains, writes the model to ``options.out`` and measures it; returns the figures.

    Raises:
        PacelineError: naming the option, or the file and line, that cannot be used.
    """
    check_places(options)
    device = choose_device(options.device)
    chat = ChatFormat()
    sums = arithmetic_dialogues(options.arithmetic, seed=options.seed)
    corpus = read_corpus(options.data, options.held_out, seed=options.seed, generated=sums)
    tokenizer = _tokenizer(options, corpus, chat)
    parts = [
        WeightedStream(encode(documents, tokenizer, chat), weight) for weight, documents in corpus.by_weight.items()
    ]
    blocks = Blocks(parts, length=options.length, batch_size=options.batch_size, seed=options.seed)
    ids = marker_ids(tokenizer, chat)
    model = new_llama(
        options.shape,
        vocab_size=tokenizer.get_vocab_size(),
        context=options.length,
        bos=ids[chat.bos],
        end=ids[chat.end],
        pad=ids[chat.pad],
        seed=options.seed,
    ).to(device)
    loss = fit(model, partial(cross_entropy, DTYPES[options.dtype]), blocks, options, progress)
    copy_tokenizer(options.work_directory, options.out)
    save_model(model, options.out)
    measured = Measured(options.out, None, corpus.held_out, TokenStream.joined([part.stream for part in parts]))
    facts = {"recipe": "target", "train_loss": loss}
    return measure(measured, options, progress, length=options.length, facts=facts, out=options.out / "metrics.json")


def cross_entropy(dtype: torch.dtype, model: nn.Module, tokens: torch.Tensor, reply: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss of tokens int64[B, T + 1], in nats; whoever wrote them."""
    del reply
    with mixed_precision(tokens.device, dtype):
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def _tokenizer(options: TargetOptions, corpus: Corpus, chat: ChatFormat) -> Tokenizer:
    """The run's tokenizer; a resumed run reads the one it began with."""
    work = options.work_directory
    if not all((work / name).is_file() for name in FILES):
        made = train_tokenizer(texts_of(corpus.documents), vocab_size=options.vocab_size, chat=chat)
        save_tokenizer(made, work, chat=chat, max_length=options.length)
    return load_tokenizer(work)
