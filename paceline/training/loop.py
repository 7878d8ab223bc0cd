"""Knows how to run optimiser steps and to go on after being killed. Knows nothing of the loss it is given."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from paceline.core.errors import ConfigError, PacelineError
from paceline.training.optimizers import Optimizers, rate_scale
from paceline.training.progress import Advance, Progress
from paceline.training.workspace import check_same_run

LossFunction = Callable[[int], torch.Tensor]
"""Given the step number, the mean loss of that step's batch (a scalar with a graph)."""

STAGE = "step"
TRIAL_STEPS = 4


class DivergedError(PacelineError, FloatingPointError):
    """The loss is no longer a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    steps: int
    tokens_per_step: int
    learning_rate: float = 2e-3
    matrix_learning_rate: float = 2e-2
    """For hidden matrices, which Muon updates."""
    warmup: float = 0.05
    """Share of the steps over which the rate rises."""
    decay: float = 0.5
    """Share of the steps, at the end, over which the rate falls linearly to a twentieth."""
    clip: float = 1.0
    checkpoint_every: int = 200
    report_every: int = 20

    def optimizers(self, model: nn.Module) -> Optimizers:
        return Optimizers(model, learning_rate=self.learning_rate, matrix_learning_rate=self.matrix_learning_rate)

    def scale(self, step: int) -> float:
        return rate_scale(step, steps=self.steps, warmup=self.warmup, decay=self.decay)


def run(
    model: nn.Module, loss_of: LossFunction, config: LoopConfig, *, checkpoint: Path, progress: Progress, run_key: str
) -> float:
    """Runs to ``config.steps``, resuming from ``checkpoint`` if it exists; returns the last smoothed loss.

    A killed run loses at most ``checkpoint_every`` steps and ends with the weights of a run that was never killed
    (bit for bit on a CPU; a GPU's sums are not ordered). ``run_key`` says what run this is: a checkpoint of another
    is refused.

    Raises:
        ConfigError: the checkpoint is of another run.
        DivergedError: the loss became infinite or NaN.
    """
    optimizers = config.optimizers(model)
    step, smoothed = _resume(model, optimizers, checkpoint, run_key)
    if step:
        progress.note(f"going on at step {step} of {config.steps}, from {checkpoint}")
    resumed = first = step
    began = time.monotonic()
    while step < config.steps:
        value = _advance(model, loss_of, optimizers, step, config)
        smoothed = value if step == 0 else 0.95 * smoothed + 0.05 * value
        step += 1
        if step % config.report_every == 0 or step == config.steps:
            progress.advance(_report(step, first, smoothed, time.monotonic() - began, config))
        if step == resumed + 1:
            began, first = time.monotonic(), step  # the first step may compile, which says nothing of the others
        if step % config.checkpoint_every == 0 or step == config.steps:
            _save(model, optimizers, checkpoint, step=step, loss=smoothed, run=run_key)
    return smoothed


def _advance(model: nn.Module, loss_of: LossFunction, optimizers: Optimizers, step: int, config: LoopConfig) -> float:
    loss = loss_of(step)
    value = float(loss.detach())
    if not math.isfinite(value):
        lower = config.learning_rate / 2
        raise DivergedError(
            f"the loss became {value} at step {step}\nLower --learning-rate to {lower:g}, with another --work."
        )
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimizers.step(config.scale(step))
    return value


def _report(step: int, first: int, loss: float, seconds: float, config: LoopConfig) -> Advance:
    per_step = max(seconds, 1e-9) / (step - first)
    left = per_step * (config.steps - step)
    return Advance(STAGE, step, config.steps, config.tokens_per_step / per_step, left, loss)


def _save(model: nn.Module, optimizers: Optimizers, path: Path, *, step: int, loss: float, run: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "optimizers": optimizers.state(), "step": step, "loss": loss, "run": run}
    new = path.with_suffix(".new")
    torch.save(state, new)
    os.replace(new, path)


def _resume(model: nn.Module, optimizers: Optimizers, path: Path, run_key: str) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    # To the CPU: the optimisers keep their step counts there, and move the rest to the weights' device themselves.
    state = torch.load(path, weights_only=True, map_location="cpu")
    check_same_run(path, str(state.get("run")), run_key)
    model.load_state_dict(state["model"])
    optimizers.load(state["optimizers"])
    return int(state["step"]), float(state["loss"])


def load_weights(model: nn.Module, path: Path) -> int:
    """Gives a model the weights of a checkpoint, whatever run it is of; returns the step.

    Raises:
        ConfigError: there is none.
    """
    if not path.exists():
        raise ConfigError(f"there is no checkpoint {path}\nTrain first, or name the --work of a run that has one.")
    state = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(state["model"])
    return int(state["step"])


def seconds_per_step(model: nn.Module, loss_of: LossFunction, config: LoopConfig) -> float:
    """Tries a few steps, of which the first does not count, and puts the weights back."""
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizers = config.optimizers(model)
    _advance(model, loss_of, optimizers, 0, config)
    started = time.monotonic()
    for step in range(1, TRIAL_STEPS):
        _advance(model, loss_of, optimizers, step, config)
    seconds = time.monotonic() - started
    model.load_state_dict(kept)
    return seconds / (TRIAL_STEPS - 1)
