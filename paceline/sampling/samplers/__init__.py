"""Which samplers there are, and which one takes which logits; a new one is a file here and a line below."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from paceline.core.errors import ConfigError
from paceline.core.registry import Registry
from paceline.sampling.samplers import in_native
from paceline.sampling.samplers.base import Sampler
from paceline.sampling.samplers.in_native import NativeSampler
from paceline.sampling.samplers.in_torch import TorchSampler
from paceline.sampling.state import SamplingState

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class SamplerKind:
    """How a sampler is made, and which logits it takes."""

    build: Callable[[SamplingState], Sampler]
    takes: Callable[[SamplingState, torch.dtype], bool]


samplers: Registry[SamplerKind] = Registry("sampler")
"""In the order in which "auto" prefers them."""
samplers.add("native")(SamplerKind(NativeSampler, in_native.takes))
samplers.add("torch")(SamplerKind(TorchSampler, lambda _state, _dtype: True))


def build_sampler(name: str, state: SamplingState, dtype: torch.dtype) -> Sampler:
    """The sampler ``name``, or with "auto" the best one, for logits of a type on the state's device.

    Raises:
        ConfigError: there is no such sampler, or it does not take these logits.
    """
    if name == AUTO:
        name = next(able for able in samplers if samplers[able].takes(state, dtype))
    if not samplers[name].takes(state, dtype):
        raise ConfigError(f'sampler="{name}" cannot take {dtype} on {state.device} here\nSet sampler to "{AUTO}".')
    return samplers[name].build(state)


__all__ = ["AUTO", "Sampler", "build_sampler", "samplers"]
