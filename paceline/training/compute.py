"""Knows where and in which precision a run computes, and how to compile a loss where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from paceline.core.errors import ConfigError
from paceline.training.progress import Progress

WORTH_COMPILING = {"cpu": 1e13, "cuda": 1e15}
"""Floating-point operations that take some minutes there."""
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one.

    Raises:
        ConfigError: CUDA is asked for and not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but this machine or this torch has none\nUse --device cpu, or auto.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def mixed_precision(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix products in ``dtype``, weights and sums in float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


class Compiled:
    """A function through torch.compile, or as it is where that fails; then one line says so.

    A compiler can be missing in many ways, each with its own exception. Whatever the compiled function raises, the
    plain one is asked instead: an error of the function itself comes again from there.
    """

    def __init__(self, function: Callable[..., torch.Tensor], progress: Progress) -> None:
        self.plain, self.progress = function, progress
        self.compiled: Callable[..., torch.Tensor] | None = torch.compile(function, dynamic=False)

    def __call__(self, *arguments: Any) -> torch.Tensor:
        if self.compiled is not None:
            try:
                return self.compiled(*arguments)
            except Exception as error:
                self.compiled = None
                cause = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
                self.progress.note(f"not compiled, which is slower but as good: {cause.strip()[:160]}")
        return self.plain(*arguments)


def worth_compiling(num_parameters: int, num_tokens: int, device: torch.device) -> bool:
    """Whether a run over ``num_tokens`` is long enough to win back a trial of torch.compile, of about a minute."""
    return 6 * num_parameters * num_tokens > WORTH_COMPILING[device.type]
