"""Knows the options of the recipes, their presets and their limits; knows nothing of the command line or of files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from paceline.core.errors import ConfigError
from paceline.core.settings import About

Preset = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The size of a Llama."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"{self.num_heads} heads cannot share {self.num_kv_heads} K/V heads evenly\nChange --num-kv-heads."
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even, got {self.head_dim}\nChange --head-dim.")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureOptions:
    """How models are measured."""

    PRESETS: ClassVar[Mapping[str, Preset]] = {}

    device: Annotated[
        str, About("auto, cpu or cuda; auto is cuda where there is one.", choices=("auto", "cpu", "cuda"))
    ] = "auto"
    seed: Annotated[int, About("The same seed gives the same run.", low=0)] = 0
    eval_rows: Annotated[int, About("Rows of held-out text whose loss is measured.", low=1)] = 64
    eval_prompts: Annotated[int, About("Held-out prompts that are answered to measure acceptance.", low=1)] = 64
    eval_tokens: Annotated[int, About("Longest answer to such a prompt, in tokens.", low=1)] = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions(MeasureOptions):
    """What every training run has."""

    data: Annotated[
        tuple[str, ...], About("FILE[:WEIGHT]: .jsonl of dialogues, .txt, or a folder; may be given repeatedly.")
    ]
    held_out: Annotated[tuple[str, ...], About("The same, for the evaluation; by default a fiftieth of the data.")] = ()
    out: Annotated[Path, About("Directory to write the model to.")]
    work: Annotated[Path | None, About("Directory of what a killed run goes on from; by default OUT.work.")] = None
    steps: Annotated[int, About("Optimiser steps.", low=1)] = 1500
    minutes: Annotated[float | None, About("As many steps as take about this long, instead of --steps.", above=0)] = (
        None
    )
    batch_size: Annotated[int, About("Rows per step.", low=1)] = 8
    length: Annotated[int, About("Tokens per row.", low=8)] = 1024
    short_rows: Annotated[
        float, About("Share of the steps, the first ones, whose rows are cut in four, which is faster.", low=0)
    ] = 0.0
    learning_rate: Annotated[float, About("Peak rate of AdamW.", above=0)] = 2e-3
    matrix_learning_rate: Annotated[float, About("Peak rate of Muon, which updates the hidden matrices.", above=0)] = (
        2e-2
    )
    dtype: Annotated[str, About("bfloat16 or float32, of matrix products.", choices=("bfloat16", "float32"))] = (
        "bfloat16"
    )
    compile: Annotated[bool | None, About("Use torch.compile; by default a long run tries whether it is faster.")] = (
        None
    )
    checkpoint_every: Annotated[int, About("Steps between checkpoints.", low=1)] = 200
    report_every: Annotated[int, About("Steps between reports.", low=1)] = 20

    @property
    def work_directory(self) -> Path:
        return self.work or self.out.with_name(f"{self.out.name}.work")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions(RunOptions):
    """What a run has that makes a whole model."""

    hidden_size: Annotated[int, About("Width of the model.", low=2)] = 192
    intermediate_size: Annotated[int, About("Width of its MLPs.", low=1)] = 512
    num_layers: Annotated[int, About("Layers.", low=1)] = 6
    num_heads: Annotated[int, About("Attention heads.", low=1)] = 6
    num_kv_heads: Annotated[int, About("K/V heads.", low=1)] = 2
    head_dim: Annotated[int, About("Width of a head.", low=2)] = 32

    @property
    def shape(self) -> ModelShape:
        return ModelShape(
            self.hidden_size,
            self.intermediate_size,
            self.num_layers,
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
        )


TARGET_PRESETS: Mapping[str, Preset] = {
    "tiny": {},
    "small": {
        "vocab_size": 6144,
        "hidden_size": 320,
        "intermediate_size": 864,
        "num_layers": 10,
        "num_heads": 10,
        "num_kv_heads": 2,
        "head_dim": 32,
        "length": 1024,
        "short_rows": 0.8,
    },
}

DRAFT_PRESETS: Mapping[str, Preset] = {
    "tiny": {},
    "small": {
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 32,
        "short_rows": 0.8,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetOptions(ModelOptions):
    """Trains a Llama-style target on dialogues and plain text."""

    PRESETS: ClassVar[Mapping[str, Preset]] = TARGET_PRESETS

    preset: Annotated[
        str, About("tiny (3 million parameters) or small (12 million).", choices=tuple(TARGET_PRESETS))
    ] = "tiny"
    steps: Annotated[int, About("Optimiser steps.", low=1)] = 3000
    length: Annotated[int, About("Tokens per row, and the model's context.", low=8)] = 1024
    vocab_size: Annotated[int, About("Tokens of the vocabulary.", low=1)] = 4096
    arithmetic: Annotated[int, About("Add this many generated dialogues of small sums.", low=0)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOptions(ModelOptions):
    """Distils a draft from a target, on replies that the target writes."""

    PRESETS: ClassVar[Mapping[str, Preset]] = DRAFT_PRESETS

    target: Annotated[Path, About("Directory of the model to imitate.")]
    preset: Annotated[str, About("tiny or small, made for the targets of that name.", choices=tuple(DRAFT_PRESETS))] = (
        "tiny"
    )
    replies: Annotated[int, About("Dialogues whose replies the target writes anew.", low=1)] = 2000
    reply_tokens: Annotated[int, About("Longest reply, in tokens.", low=1)] = 96
    human_weight: Annotated[float, About("How often an epoch also shows the replies as people wrote them.", low=0)] = (
        0.0
    )
    hidden_size: Annotated[int, About("Width of the draft.", low=2)] = 80
    intermediate_size: Annotated[int, About("Width of its MLPs.", low=1)] = 208
    num_layers: Annotated[int, About("Layers.", low=1)] = 2
    num_heads: Annotated[int, About("Attention heads.", low=1)] = 5
    num_kv_heads: Annotated[int, About("K/V heads.", low=1)] = 1
    head_dim: Annotated[int, About("Width of a head.", low=2)] = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions(MeasureOptions):
    """Measures a target, and a draft for it."""

    target: Annotated[Path, About("Directory of the target.")]
    draft: Annotated[Path | None, About("Directory of the draft.")] = None
    data: Annotated[
        tuple[str, ...], About("Held-out FILE: .jsonl of dialogues, .txt, or a folder; may be given repeatedly.")
    ]
    baseline_data: Annotated[
        tuple[str, ...], About("What the n-gram baseline learns from; without it there is none.")
    ] = ()
    length: Annotated[int, About("Tokens per row of held-out text.", low=8)] = 1024
    out: Annotated[Path | None, About("File for the figures; by default metrics.json beside the model.")] = None
