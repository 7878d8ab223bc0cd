"""Knows which figures say how good a target and its draft are, and how they are written and read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from paceline.training.acceptance import answered
from paceline.training.compute import choose_device
from paceline.training.data import ChatFormat, DataSource, Document, read_documents
from paceline.training.held_out import HeldOut, agreement, baseline_loss, model_loss
from paceline.training.hugging_face import load_frozen
from paceline.training.options import EvaluateOptions, MeasureOptions
from paceline.training.progress import Progress
from paceline.training.stream import TokenStream, encode
from paceline.training.tokenizer import load_tokenizer
from paceline.training.workspace import write_json

NAMES = {"greedy": "greedy", "temperature_0.7": "at temperature 0.7"}


@dataclass(frozen=True, slots=True)
class Measured:
    """The models, unseen documents, and what the baseline learns from."""

    target: Path
    draft: Path | None
    documents: Sequence[Document]
    baseline: TokenStream | None


def evaluate(options: EvaluateOptions, progress: Progress) -> Mapping[str, Any]:
    """Measures models that lie in directories; returns the figures.

    Raises:
        PacelineError: naming the option, or the file and line, that cannot be used.
    """
    tokenizer, chat = load_tokenizer(options.target), ChatFormat()
    baseline = encode(_read(options.baseline_data), tokenizer, chat) if options.baseline_data else None
    measured = Measured(options.target, options.draft, _read(options.data), baseline)
    out = options.out or (options.draft or options.target) / "metrics.json"
    return measure(measured, options, progress, length=options.length, facts={"recipe": "evaluate"}, out=out)


def _read(paths: Sequence[str]) -> list[Document]:
    return [one for text in paths for one in read_documents(DataSource.parse(text).files())]


def measure(
    measured: Measured,
    options: MeasureOptions,
    progress: Progress,
    *,
    length: int,
    facts: Mapping[str, Any],
    out: Path,
) -> Mapping[str, Any]:
    """Measures the models as they lie on disk, writes the figures to ``out`` and reports them."""
    progress.note("measuring on held-out data")
    tokenizer, chat = load_tokenizer(measured.target), ChatFormat()
    metrics = {
        **facts,
        "held_out": _predicting(measured, tokenizer, chat, options, length),
        "answering": answered(measured.target, measured.draft, measured.documents, chat, options),
    }
    write_json(out, metrics)
    progress.result(metrics, [*summary(metrics), f"written to {out}"])
    return metrics


def _predicting(
    measured: Measured, tokenizer: Tokenizer, chat: ChatFormat, options: MeasureOptions, length: int
) -> dict[str, Any]:
    device = choose_device(options.device)
    target = load_frozen(measured.target, device)
    context = min(length, target.config.max_position_embeddings)
    held_out = HeldOut.of(encode(measured.documents, tokenizer, chat), length=context, count=options.eval_rows)
    num_bytes = held_out.num_bytes(tokenizer)
    figures: dict[str, Any] = {
        "tokens": held_out.num_predicted,
        "bytes": num_bytes,
        "target": model_loss(target, held_out, num_bytes),
    }
    if measured.draft is not None:
        draft = load_frozen(measured.draft, device)
        figures["draft"] = model_loss(draft, held_out, num_bytes)
        figures["teacher_forced"] = agreement(draft, target, held_out)
    if measured.baseline is not None:
        size = max(tokenizer.get_vocab_size(), target.config.vocab_size)
        figures["baseline"] = baseline_loss(measured.baseline, held_out, num_bytes, vocab_size=size)
    return figures


def summary(metrics: Mapping[str, Any]) -> list[str]:
    """The figures as lines for people."""
    held_out = metrics["held_out"]
    lines = [f"held-out text     {held_out['tokens']:,} tokens, {held_out['bytes']:,} bytes"]
    for name in ("target", "draft", "baseline"):
        if name in held_out:
            found = held_out[name]
            loss = f"{found['nats_per_token']:.4f} nats/token, {found['bits_per_byte']:.4f} bits/byte"
            lines.append(f"  {name:<15} {loss}" + (f" ({found['model']})" if "model" in found else ""))
    if held_out.get("teacher_forced"):
        forced = held_out["teacher_forced"]
        agree = f"greedy choices agree {forced['greedy_agreement']:.1%}, overlap {forced['overlap']:.1%}"
        lines.append(f"  teacher-forced  {agree}, on {forced['tokens']:,} tokens of replies")
    if not metrics["answering"]:
        lines.append("answers            none: no held-out prompt leaves room for one in half of the context")
    for name, found in metrics["answering"].items():
        lines += _answers(NAMES[name], found)
    return lines


def _answers(name: str, found: Mapping[str, Any]) -> list[str]:
    ended = f"{found['ended_by_model']} of {found['prompts']} ended by the model"
    lines = [f"answers {name}: {found['tokens']:,} tokens, {ended}"]
    if found["repeated_4grams"] is not None:
        lines.append(f"  repeated 4-grams {found['repeated_4grams']:.1%}")
    if found.get("acceptance") is not None:
        pairs = zip(found["accepted_per_position"], found["drafted_per_position"], strict=True)
        places = "  ".join(f"{a}/{d} = {a / d:.1%}" for a, d in pairs if d)
        lines.append(f"  accepted by position {places}")
        lines.append(
            f"  accepted {found['acceptance']:.1%} of the drafted, {found['accepted_per_draft']:.2f} per draft"
        )
    return lines
