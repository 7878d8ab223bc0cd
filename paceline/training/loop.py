"""Knows how to run optimiser steps: schedule, checkpoints, progress. Knows nothing of the loss it is given."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

LossFunction = Callable[[int], torch.Tensor]
"""Given the step number, the mean loss of that step's batch (a scalar with a graph)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    steps: int
    tokens_per_step: int
    learning_rate: float = 2e-3
    matrix_learning_rate: float = 2e-2
    """For hidden matrices, which Muon updates (https://kellerjordan.github.io/posts/muon/)."""
    warmup: float = 0.05
    """Share of the steps over which the rate rises."""
    decay: float = 0.5
    """Share of the steps, at the end, over which the rate falls linearly to a twentieth."""
    clip: float = 1.0
    checkpoint_every: int = 200
    report_every: int = 20


class Optimizers:
    """Muon for the hidden matrices, AdamW for everything else, stepped as one."""

    def __init__(self, model: nn.Module, config: LoopConfig) -> None:
        matrices, others = _split(model)
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.01),
        ]
        if matrices:
            self.parts.append(torch.optim.Muon(matrices, lr=config.matrix_learning_rate, weight_decay=0.01))
        self.base_rates = [part.param_groups[0]["lr"] for part in self.parts]

    def step(self, scale: float) -> None:
        for part, rate in zip(self.parts, self.base_rates, strict=True):
            part.param_groups[0]["lr"] = rate * scale
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, object]]:
        return [part.state_dict() for part in self.parts]

    def load(self, states: list[dict[str, object]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def _split(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        hidden = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        (matrices if hidden else others).append(parameter)
    return matrices, others


def rate_scale(step: int, config: LoopConfig) -> float:
    """Warm-up, plateau, linear decay: 0..1."""
    rise = (step + 1) / max(1.0, config.warmup * config.steps)
    fall = (config.steps - step) / max(1.0, config.decay * config.steps)
    return max(0.05, min(1.0, rise, fall))


def run(
    model: nn.Module, loss_of: LossFunction, config: LoopConfig, *, checkpoint: Path, report: Callable[[str], None]
) -> float:
    """Runs to ``config.steps``, resuming from ``checkpoint`` if it exists; returns the last smoothed loss.

    A killed run loses at most ``checkpoint_every`` steps and ends with the weights of a run that was never killed.
    """
    optimizers = Optimizers(model, config)
    step, smoothed = _resume(model, optimizers, checkpoint)
    started, first = time.monotonic(), step
    while step < config.steps:
        loss = loss_of(step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizers.step(rate_scale(step, config))
        value = float(loss.detach())
        if not math.isfinite(value):
            lower = config.learning_rate / 2
            raise FloatingPointError(f"the loss became {value} at step {step}\nLower --learning-rate to {lower:g}.")
        smoothed = value if step == 0 else 0.95 * smoothed + 0.05 * value
        step += 1
        if step % config.report_every == 0 or step == config.steps:
            report(_progress(step, first, smoothed, time.monotonic() - started, config))
        if step % config.checkpoint_every == 0 or step == config.steps:
            _save(model, optimizers, step, smoothed, checkpoint)
    return smoothed


def _progress(step: int, first: int, loss: float, seconds: float, config: LoopConfig) -> str:
    per_step = seconds / max(1, step - first)
    left = per_step * (config.steps - step)
    rate = config.tokens_per_step / per_step
    return f"step {step}/{config.steps}  loss {loss:.4f}  {rate:,.0f} tokens/s  {left / 60:.1f} min left"


def _save(model: nn.Module, optimizers: Optimizers, step: int, smoothed: float, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "optimizers": optimizers.state(), "step": step, "loss": smoothed}
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def _resume(model: nn.Module, optimizers: Optimizers, path: Path) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizers.load(state["optimizers"])
    return int(state["step"]), float(state["loss"])


def trainable(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
