"""A toy target and drafts, trained by the recipes' own code."""

from __future__ import annotations

import json
from collections.abc import Mapping
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


@pytest.fixture(scope="session")
def deep(toy) -> Toy:
    """A toy target of three layers, as many as a head reads."""
    from paceline.training.target import train_target  # noqa: PLC0415

    options = replace(toy.target_options, out=toy.directory / "deep" / "target", num_layers=3, steps=80, eval_prompts=2)
    progress = RecordingProgress()
    metrics = dict(train_target(options, progress))
    return Toy(options.out.parent, toy.data, options, progress, metrics)


@pytest.fixture(scope="session")
def replies(deep) -> Path:
    """What the target wrote, shared among the recipes."""
    from paceline.training.medusa import train_medusa  # noqa: PLC0415
    from tests.training.heads import options_of  # noqa: PLC0415

    options = options_of(deep, "medusa", "replies", steps=1, replies=120)
    train_medusa(options, RecordingProgress())
    return options.work_directory / "replies.jsonl"


@pytest.fixture(scope="session")
def trained(deep, replies) -> dict[str, tuple[Any, RecordingProgress, Mapping[str, Any]]]:
    """Of every recipe of a head: options, what was reported, and the figures."""
    from tests.training.heads import RECIPES, options_of  # noqa: PLC0415

    found = {}
    for name, recipe in RECIPES.items():
        options = options_of(deep, name, f"head_{name}", steps=100, replies_from=replies)
        progress = RecordingProgress()
        found[name] = options, progress, recipe.train(options, progress)
    return found
