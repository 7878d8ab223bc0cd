"""Knows the part that both recipes share: from blocks and a loss to a trained model on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from paceline.core.errors import ConfigError
from paceline.training.compute import Compiled, worth_compiling
from paceline.training.loop import LoopConfig, run, steps_in
from paceline.training.optimizers import num_parameters
from paceline.training.options import RunOptions
from paceline.training.progress import Progress
from paceline.training.stream import Blocks
from paceline.training.workspace import planned_steps, run_key

BatchLoss = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
"""The mean loss of tokens int64[B, T + 1], of which reply bool[B, T + 1] marks an assistant's."""


def check_places(options: RunOptions) -> None:
    """A run must not write over what it reads."""
    if options.work_directory.resolve() == options.out.resolve():
        raise ConfigError("--work and --out are the same directory\nGive two.")
    if options.out.exists() and not options.out.is_dir():
        raise ConfigError(f"--out {options.out} is a file\nName a directory.")


def fit(model: Any, loss: BatchLoss, blocks: Blocks, options: RunOptions, progress: Progress) -> float:
    """Trains ``model`` in place, resuming where a killed run stopped; returns the last smoothed loss."""
    device = next(model.parameters()).device
    size = num_parameters(model)
    planned = options.steps * options.batch_size * options.length
    wanted = worth_compiling(size, planned, device) if options.compile is None else options.compile
    computed = Compiled(loss, progress) if wanted else loss

    def loss_of(step: int) -> torch.Tensor:
        tokens, reply = blocks.batch(step)
        return computed(model, tokens.to(device), reply.to(device))

    how = f"{device.type}, {options.dtype}{', compiled' if wanted else ''}"
    progress.note(f"{size:,} parameters, {blocks.num_tokens:,} training tokens, {how}")

    def config(steps: int) -> LoopConfig:
        return LoopConfig(
            steps=steps,
            tokens_per_step=options.batch_size * options.length,
            learning_rate=options.learning_rate,
            matrix_learning_rate=options.matrix_learning_rate,
            checkpoint_every=options.checkpoint_every,
            report_every=options.report_every,
        )

    steps = planned_steps(options, lambda seconds: steps_in(seconds, model, loss_of, config(options.steps)))
    checkpoint = options.work_directory / "checkpoint.pt"
    key = run_key(options, blocks)
    return run(model, loss_of, config(steps), checkpoint=checkpoint, progress=progress, run_key=key)
