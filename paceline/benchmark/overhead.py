"""Knows which part of an engine's steps is spent in the models and the sampling pipeline; the rest is overhead."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from paceline.benchmark.trial import Clock
from paceline.engine.engine import Engine
from paceline.kernels.native import region
from paceline.sampling import Pipeline

LOOK_UP = tuple(call.__name__ for call in (Pipeline.native, Pipeline.can_plan, Pipeline.edits))
"""Those of the pipeline's methods that sample nothing: the native call that they name is timed where it is made."""


class KernelClock:
    """Adds up the seconds of outermost calls; a call inside another counts once."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self.seconds = 0.0
        self._clock, self._depth, self._started = clock, 0, 0.0

    def start(self) -> None:
        self._depth += 1
        if self._depth == 1:
            self._started = self._clock()

    def stop(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.seconds += self._clock() - self._started


@contextmanager
def timed_kernels(engine: Engine, clock: Clock = time.perf_counter) -> Iterator[KernelClock]:
    """While entered, times the passes of target and drafter and the calls of the pipeline that both share.

    Of a pass on native kernels only the native call counts: what prepares it is overhead.

    On a GPU every call is waited for, so that its time is its own; the step gets slower by that.
    """
    kernels = KernelClock(clock)
    device = engine.runner.device
    models = [engine.runner.model, engine.proposer.model if engine.proposer is not None else None]
    modules = [part for model in models if model is not None for part in (model, model.head)]
    hooks = [hook for module in modules for hook in _hooks(module, kernels, device)]
    names = [name for name in dir(type(engine.pipeline)) if not name.startswith("_") and name not in LOOK_UP]
    calls = {name: getattr(engine.pipeline, name) for name in names if callable(getattr(engine.pipeline, name))}
    # On the instance: drafters hold the same pipeline, and other engines keep theirs.
    for name, call in calls.items():
        setattr(engine.pipeline, name, _timed(call, kernels, device))
    region.watches.append(kernels)
    try:
        yield kernels
    finally:
        region.watches.remove(kernels)
        for name in calls:
            delattr(engine.pipeline, name)
        for hook in hooks:
            hook.remove()


def _hooks(module: nn.Module, kernels: KernelClock, device: torch.device) -> list[Any]:
    def before(*_: Any) -> None:
        kernels.start()

    def after(*_: Any) -> None:
        _wait(device)
        kernels.stop()

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after, always_call=True)]


def _timed(call: Callable[..., Any], kernels: KernelClock, device: torch.device) -> Callable[..., Any]:
    @functools.wraps(call)
    def timed(*arguments: Any, **options: Any) -> Any:
        kernels.start()
        try:
            return call(*arguments, **options)
        finally:
            _wait(device)
            kernels.stop()

    return timed


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
