"""Knows the part that both recipes share: from blocks and a loss to a trained model on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from paceline.core.errors import ConfigError
from paceline.training.compute import Compiled, worth_compiling
from paceline.training.loop import LoopConfig, LossFunction, run, seconds_per_step
from paceline.training.optimizers import num_parameters
from paceline.training.options import RunOptions
from paceline.training.progress import Progress
from paceline.training.stream import Blocks
from paceline.training.workspace import RunPlan, make_plan, run_key

LONG_MINUTES = 10.0
"""Of a run, before torch.compile is tried."""
SHORT = 4
"""What a row is cut into during the first steps: attention costs a quarter there, and most dialogues still fit."""
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
    progress.note(f"{size:,} parameters, {blocks.num_tokens:,} training tokens, {device.type}, {options.dtype}")
    compiled = Compiled(loss, progress)

    def loss_function(compile_it: bool, short_steps: int) -> LossFunction:
        computed = compiled if compile_it else loss

        def loss_of(step: int) -> torch.Tensor:
            tokens, reply = blocks.batch(step, parts=SHORT if step < short_steps else 1)
            return computed(model, tokens.to(device), reply.to(device))

        return loss_of

    def trial(compile_it: bool) -> float:
        config = _loop_config(options, options.steps)
        shares = {options.steps: options.short_rows, 0: 1 - options.short_rows}  # short steps to try: their share
        return sum(
            share * seconds_per_step(model, loss_function(compile_it, short), config)
            for short, share in shares.items()
            if share > 0
        )

    work, key = options.work_directory, run_key(options, blocks)
    plan = RunPlan.kept(work / "plan.json", key)
    if plan is None:
        plan = make_plan(options, key, trial, worth_trying=_is_long(options, size, device))
        plan.keep(work / "plan.json")
    if plan.compiled:
        progress.note("the loss is compiled; the first step takes longer")
    config = _loop_config(options, plan.steps)
    loss_of = loss_function(plan.compiled, int(plan.steps * options.short_rows))
    return run(model, loss_of, config, checkpoint=work / "checkpoint.pt", progress=progress, run_key=key)


def _is_long(options: RunOptions, num_parameters: int, device: torch.device) -> bool:
    if options.minutes is not None:
        return options.minutes >= LONG_MINUTES
    return worth_compiling(num_parameters, options.steps * options.batch_size * options.length, device)


def _loop_config(options: RunOptions, steps: int) -> LoopConfig:
    return LoopConfig(
        steps=steps,
        tokens_per_step=options.batch_size * options.length,
        learning_rate=options.learning_rate,
        matrix_learning_rate=options.matrix_learning_rate,
        checkpoint_every=options.checkpoint_every,
        report_every=options.report_every,
    )
