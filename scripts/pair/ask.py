"""Asks the embedded pair the fixed questions, at temperature 0 and 0.7, with its draft; writes what it answers.

python -m scripts.pair.ask --out docs/results/answers-of-the-pair.json --page docs/answers.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from paceline import LLM, SamplingParams

QUESTIONS = Path(__file__).with_name("questions.json")
TEMPERATURES = (0.0, 0.7)
SEED = 7
MAX_TOKENS = 96


def ask(llm: LLM, messages: list[dict[str, str]], temperature: float) -> str:
    params = SamplingParams(temperature=temperature, seed=SEED, max_tokens=MAX_TOKENS)
    return llm.chat(messages, params)[0].outputs[0].text.strip()


def answered(llm: LLM, question: dict[str, Any]) -> dict[str, Any]:
    answers = {f"temperature {one:g}": ask(llm, question["messages"], one) for one in TEMPERATURES}
    return {**question, "answers": answers}


def arithmetic_score(questions: list[dict[str, Any]]) -> dict[str, int]:
    """How many answers end in the right number, by temperature."""
    return {
        f"temperature {one:g}": sum(
            question["answers"][f"temperature {one:g}"].rstrip(".").endswith(f" {question['result']}")
            for question in questions
        )
        for one in TEMPERATURES
    }


def page(record: dict[str, Any]) -> str:
    """The answers for people to read."""
    lines = [
        "# What the embedded pair answers",
        "",
        "Twenty turns of dialogues that no training saw, and ten sums; fixed before the model was trained. Made by",
        "`python -m scripts.pair.ask`. " + record["source"],
        "",
        "The pair invents names, numbers and facts: a reply counts as sensible if it fits what was said before.",
        "",
    ]
    for number, question in enumerate(record["dialogues"], 1):
        lines += [f"## {number}", ""]
        lines += [f"- {turn['role']}: {turn['content']}" for turn in question["messages"]]
        lines += ["", *(f"> **{name}**: {answer}\n>" for name, answer in question["answers"].items())]
        lines += [f"> *people*: {question['people']}", ""]
    lines += ["## Sums", "", "| asked | " + " | ".join(record["right_sums"]) + " |", "|---|---|---|"]
    for question in record["arithmetic"]:
        lines.append(f"| {question['messages'][0]['content']} | " + " | ".join(question["answers"].values()) + " |")
    right = ", ".join(
        f"{count} of {len(record['arithmetic'])} at {name}" for name, count in record["right_sums"].items()
    )
    return "\n".join([*lines, "", f"Right: {right}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--page", type=Path, required=True)
    parser.add_argument("--model", help="directory of another target")
    parser.add_argument("--draft", help="directory of its draft")
    arguments = parser.parse_args()
    drafter = {"method": "draft_model", "model": arguments.draft} if arguments.draft else "auto"
    llm = LLM(arguments.model, speculative_config=drafter)
    questions = json.loads(QUESTIONS.read_text(encoding="utf-8"))
    record = {
        "source": questions["source"],
        "settings": {"seed": SEED, "max_tokens": MAX_TOKENS, "torch": torch.__version__},
        "dialogues": [answered(llm, one) for one in questions["dialogues"]],
        "arithmetic": [answered(llm, one) for one in questions["arithmetic"]],
    }
    record["right_sums"] = arithmetic_score(record["arithmetic"])
    arguments.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    arguments.page.write_text(page(record), encoding="utf-8")
    print(f"sums right: {record['right_sums']}; written to {arguments.out} and {arguments.page}")


if __name__ == "__main__":
    main()
