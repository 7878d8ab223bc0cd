"""``paceline quantize``: writes a model with integers for weights, and says what that costs in answers and saves."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.cli.terminal import AsJson, console, note, print_json, size_text
from paceline.core.errors import ConfigError

if TYPE_CHECKING:
    from paceline.benchmark.accuracy import Agreement, Perplexity, Written
    from paceline.engine.llm import LLM
    from paceline.models.publishing import Published

MOST_TOKENS = 4096
"""Of the text, that perplexity is measured on."""
WINDOW = 512
NUM_PROMPTS, PROMPT_LEN, OUTPUT_LEN = 8, 32, 32


def quantize(
    *,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Directory or Hub id of an unquantised model.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write.")],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of MODEL on the Hub; by default its main one.")
    ] = None,
    scheme: Annotated[str, typer.Option(help="int8 or int4.")] = "int8",
    group_size: Annotated[int, typer.Option(help="int4: inputs that share a scale, 32, 64 or 128.")] = 32,
    text: Annotated[
        Path | None, typer.Option(help="Text file to compare on; by default a short text of Paceline's own.")
    ] = None,
    compare: Annotated[bool, typer.Option(help="Load the model before and after, and compare.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Write over a model in OUT.")] = False,
    as_json: AsJson = False,
) -> None:
    """Quantises MODEL's weights into the directory OUT, which Paceline and readers of compressed-tensors load."""
    from paceline.models import Quantization
    from paceline.models.publishing import quantise_checkpoint

    wanted = Quantization(scheme, group_size)
    content = _text(text) if compare else ""
    written = quantise_checkpoint(model, out, wanted, revision=revision, overwrite=force)
    found: dict[str, Any] = {"path": str(written.path), "scheme": scheme, "group_size": group_size}
    found |= {"bytes_before": written.bytes_before, "bytes_after": written.bytes_after}
    found["num_quantised"] = written.num_quantised
    compared = _compare(model, revision, out, content) if compare else None
    found["comparison"] = compared
    if as_json:
        print_json(found)
    else:
        _print(written, scheme, compared)


def _text(path: Path | None) -> str:
    place = path or Path(__file__).resolve().parents[1] / "benchmark" / "texts" / "plain.txt"
    try:
        return place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{place} cannot be read: {error}\nGive a text file.") from None


def _compare(model: str, revision: str | None, out: Path, text: str) -> dict[str, Any] | None:
    """Perplexity and greedy agreement before and after; None for a model without tokenizer."""
    from paceline.benchmark.accuracy import agreement, loss_difference

    note("the model as it was ...")
    llm = _load(model, revision)
    if llm.tokenizer is None:
        note("no comparison: the model has no tokenizer")
        return None
    tokens = llm.tokenizer.encode(text)[:MOST_TOKENS]
    before, answers = _measure(llm, tokens)
    del llm
    note("the quantised model ...")
    llm = _load(str(out))
    after, _ = _measure(llm, tokens, answers=False)
    same: Agreement = agreement(llm, answers)
    difference, error = loss_difference(after, before)
    return {
        "perplexity": {"before": before.value, "after": after.value, "num_tokens": len(before.losses)},
        "nats_per_token": {"difference": difference, "standard_error": error},
        "agreement": asdict(same),
    }


def _load(model: str, revision: str | None = None) -> LLM:
    from paceline.engine.llm import LLM

    return LLM(model, revision=revision, speculative_config=None, max_num_seqs=NUM_PROMPTS)


def _measure(llm: LLM, tokens: list[int], *, answers: bool = True) -> tuple[Perplexity, list[Written]]:
    from paceline.benchmark.accuracy import Passages, perplexity, write_greedily

    window = min(WINDOW, llm.max_model_len - 1)
    found = perplexity(llm, Passages.of(tokens, window=window, stride=window))
    length = min(PROMPT_LEN, max(1, llm.max_model_len - OUTPUT_LEN - 1), len(tokens))
    step = max(1, (len(tokens) - length) // NUM_PROMPTS)
    prompts = [tokens[start : start + length] for start in range(0, len(tokens) - length + 1, step)][:NUM_PROMPTS]
    output_len = min(OUTPUT_LEN, llm.max_model_len - length - 1)
    return found, write_greedily(llm, prompts, output_len) if answers else []


def _print(written: Published, scheme: str, compared: dict[str, Any] | None) -> None:
    out = console()
    before, after = written.bytes_before, written.bytes_after
    out.out(
        f"{written.path}: {written.num_quantised} matrices as {scheme}, {size_text(before)} -> {size_text(after)} "
        f"({after / before:.0%})"
    )
    if compared is None:
        return
    both, same = compared["perplexity"], compared["agreement"]
    out.out(f"perplexity of {both['num_tokens']} tokens: {both['before']:.3f} before, {both['after']:.3f} after")
    out.out(
        f"{same['num_answers']} greedy answers: {same['identical']:.0%} identical; given the same text, "
        f"{same['next_token']:.1%} of {same['num_tokens']} next tokens are"
    )
