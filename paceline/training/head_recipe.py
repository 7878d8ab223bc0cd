"""Knows the way that every recipe of a head goes: replies of the target, training, publishing, measuring."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from paceline.training.compute import DTYPES, choose_device, mixed_precision
from paceline.training.corpus import read_corpus
from paceline.training.data import ChatFormat, DataError, Document
from paceline.training.head import Head, choose_places, default_taps, head_loss, read_states
from paceline.training.head_acceptance import HeadMeasure, report
from paceline.training.head_options import HeadOptions
from paceline.training.hugging_face import load_frozen
from paceline.training.loop import load_weights
from paceline.training.progress import Progress
from paceline.training.publishing import Given, save_head
from paceline.training.recipe import check_places, fit
from paceline.training.regenerate import KeptReplies, read_replies, write_replies
from paceline.training.stream import Blocks, TokenStream, WeightedStream
from paceline.training.tokenizer import load_tokenizer
from paceline.training.vocabulary import DraftVocabulary

MakeHead = Callable[[Given], Head]


@dataclass(frozen=True, slots=True)
class Replies:
    """What the target wrote: to learn from, and to be measured on."""

    learnt: Sequence[TokenStream]
    held_out: Sequence[TokenStream]


def train_head(name: str, options: HeadOptions, make: MakeHead, progress: Progress) -> Mapping[str, Any]:
    """Lets the target write replies, trains a head on them, writes it to ``options.out`` and measures it.

    Raises:
        PacelineError: naming the option, or the file and line, that cannot be used.
    """
    check_places(options)
    device = choose_device(options.device)
    target = load_frozen(options.target, device)
    replies = _replies(load_tokenizer(options.target), options, progress)
    given = given_of(target, replies.learnt, options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        head = make(given).to(device)
    facts: dict[str, Any] = {"recipe": name}
    if options.export_only:
        facts["step"] = load_weights(head, options.work_directory / "checkpoint.pt")
    else:
        stream = TokenStream.joined(replies.learnt)
        blocks = Blocks(
            [WeightedStream(stream)], length=options.length, batch_size=options.batch_size, seed=options.seed
        )
        facts["train_loss"] = fit(head, HeadLoss(target, given, options, head.decay).of, blocks, options, progress)
    save_head(head, options.out)
    measure = HeadMeasure(head.eval(), target, given, options.num_speculative_tokens, DTYPES[options.dtype])
    return report(measure, replies.held_out, facts, options.out / "metrics.json", progress)


def _replies(tokenizer: Tokenizer, options: HeadOptions, progress: Progress) -> Replies:
    chat, work = ChatFormat(), options.work_directory
    corpus = read_corpus(options.data, options.held_out, seed=options.seed)
    unseen = KeptReplies.of(work / "held_out.jsonl", _dialogues(corpus.held_out), options.eval_prompts, options)
    held_out = write_replies(unseen, tokenizer, chat, options, progress)
    if options.replies_from is not None:
        return Replies(read_replies(options.replies_from, options.target), held_out)
    kept = KeptReplies.of(work / "replies.jsonl", _dialogues(corpus.documents), options.replies, options)
    return Replies(write_replies(kept, tokenizer, chat, options, progress), held_out)


def _dialogues(documents: Sequence[Document]) -> list[Document]:
    found = [document for document in documents if any(turn.role == "assistant" for turn in document[1:])]
    if not found:
        raise DataError("no dialogue in the data has a reply of the assistant\nGive --data a file of dialogues.")
    return found


def given_of(target: Any, learnt: Sequence[TokenStream], options: HeadOptions) -> Given:
    """What a head takes over of a frozen transformers model; ``learnt`` decides the draft vocabulary."""
    config = target.config
    vocabulary = DraftVocabulary.of(learnt, config.vocab_size, options.vocabulary)
    numbers = (config.pad_token_id, config.eos_token_id, 0)
    mask = next(number for number in numbers if isinstance(number, int))
    return Given(
        name=options.target.resolve().name,
        config=config,
        taps=tuple(default_taps(config.num_hidden_layers)),
        vocabulary=vocabulary,
        embedding=target.get_input_embeddings().weight,
        output=target.get_output_embeddings().weight,
        final_norm=target.model.norm.weight,
        biased=target.model.layers[0].self_attn.q_proj.bias is not None,
        mask_token=mask,
    )


@dataclass(frozen=True, slots=True)
class HeadLoss:
    """The loss of a head beside its frozen target."""

    target: Any
    given: Given
    options: HeadOptions
    decay: float

    def of(self, head: nn.Module, tokens: torch.Tensor, reply: torch.Tensor) -> torch.Tensor:
        """Of tokens int64[B, T + 1], of which reply bool[B, T + 1] marks an assistant's."""
        steps, given = self.options.num_speculative_tokens, self.given
        with mixed_precision(tokens.device, DTYPES[self.options.dtype]):
            states = read_states(self.target, tokens, given.taps)
            places = choose_places(tokens, reply, share=self.options.places, steps=steps)
            drafted = head(states, places, steps)
            wanted, counted = given.wanted(self.target, states, places, steps)
        return head_loss(wanted, drafted, counted, self.decay)
