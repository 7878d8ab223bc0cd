"""Knows which rule updates which weight, and how fast at which step; knows nothing of losses."""

from __future__ import annotations

import torch
from torch import nn


class Optimizers:
    """Muon (https://kellerjordan.github.io/posts/muon/) for hidden matrices, AdamW for the rest, stepped as one."""

    def __init__(self, model: nn.Module, *, learning_rate: float, matrix_learning_rate: float) -> None:
        matrices, others = _split(model)
        self.parts: list[torch.optim.Optimizer] = []
        if others:
            self.parts.append(torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01))
        if matrices:
            self.parts.append(torch.optim.Muon(matrices, lr=matrix_learning_rate, weight_decay=0.01))
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
        if not parameter.requires_grad:
            continue
        hidden = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        (matrices if hidden else others).append(parameter)
    return matrices, others


def rate_scale(step: int, *, steps: int, warmup: float, decay: float) -> float:
    """Warm-up, plateau, linear decay to a twentieth: a function of the step alone, so that resuming keeps it."""
    rise = (step + 1) / max(1.0, warmup * steps)
    fall = (steps - step) / max(1.0, decay * steps)
    return max(0.05, min(1.0, rise, fall))


def num_parameters(model: nn.Module) -> int:
    """Those that are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
