"""A toy target and drafts, trained by the recipes' own code."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from paceline.training.options import DraftOptions, TargetOptions
from tests.training.recording import RecordingProgress

WORDS = ["red", "green", "blue", "small", "large", "round", "square", "table", "chair", "lamp", "book"]
SIZE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "length": 32,
    "compile": False,
    "checkpoint_every": 10,
    "report_every": 10,
    "eval_prompts": 24,
    "eval_tokens": 12,
}


@dataclass(frozen=True)
class Toy:
    directory: Path
    data: str
    target_options: TargetOptions
    target_progress: RecordingProgress
    target_metrics: dict[str, Any]

    @property
    def target(self) -> Path:
        return self.target_options.out

    def draft_options(self, name: str, **changes: Any) -> DraftOptions:
        options = DraftOptions(
            **SIZE,
            data=(self.data,),
            held_out=(self.data,),
            out=self.directory / name,
            target=self.target,
            reply_tokens=12,
        )
        return replace(options, **changes)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    from paceline.training.target import train_target  # noqa: PLC0415

    directory = tmp_path_factory.mktemp("toy")
    dialogues = [
        {
            "turns": [
                {"role": "user", "text": f"What is a {a} {b}?"},
                {"role": "assistant", "text": f"A {a} {b} is {b}."},
                {"role": "user", "text": "Thanks."},
                {"role": "assistant", "text": "You are welcome."},
            ]
        }
        for a in WORDS
        for b in WORDS
    ]
    data = directory / "data.jsonl"
    data.write_text("\n".join(json.dumps(one) for one in dialogues))
    options = TargetOptions(
        **SIZE, data=(str(data),), held_out=(str(data),), out=directory / "target", vocab_size=320, steps=120
    )
    progress = RecordingProgress()
    return Toy(directory, str(data), options, progress, dict(train_target(options, progress)))
