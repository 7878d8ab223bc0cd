"""Knows the schemes by which a model is quantised while it is read, and which of its linears take part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from paceline.core.errors import ConfigError
from paceline.core.registry import Registry
from paceline.kernels.native.packing import GROUP_SIZES, MOST_INTEGER_INPUTS
from paceline.layers.linear import Linear
from paceline.models.compressed import PackedLayout

HEAD = "head"
"""The output matrix among the names of our own modules."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """Which kind of native linear a model's matrices become."""

    kind: str
    head_kind: str
    grouped: bool = False
    """Weights have a scale per output and group of inputs, else one per output."""


schemes: Registry[Scheme] = Registry("quantization")
schemes.add("int8")(Scheme("int8", "int8"))
# The head's rounding goes straight into the logits, with nothing behind it to even it out, and it is read once a token
# like any other matrix: four bits there cost far more perplexity than they save time.
schemes.add("int4")(Scheme("int4", "int8", grouped=True))


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a model is to be quantised while it is read."""

    scheme: str
    group_size: int = GROUP_SIZES[0]
    """Inputs that share a scale, for schemes that have groups."""

    def __post_init__(self) -> None:
        """Raises ConfigError for an unknown scheme or a group size that no kernel has."""
        _ = schemes[self.scheme]
        if self.group_size not in GROUP_SIZES:
            raise ConfigError(
                f"quantization_group_size is {self.group_size}\nSet it to one of {', '.join(map(str, GROUP_SIZES))}."
            )

    def layout(self, name: str, linear: Linear) -> PackedLayout:
        """How the linear of this name is laid out.

        Raises:
            ConfigError: its inputs do not divide into groups, or are too many.
        """
        scheme, inputs = schemes[self.scheme], linear.weight.shape[1]
        if inputs > MOST_INTEGER_INPUTS:
            raise ConfigError(f"{name} has {inputs} inputs, at most {MOST_INTEGER_INPUTS} can be quantised\nSet none.")
        if name == HEAD:
            return PackedLayout(scheme.head_kind)
        if not scheme.grouped:
            return PackedLayout(scheme.kind)
        if inputs % self.group_size:
            fitting = [size for size in GROUP_SIZES if not inputs % size]
            advice = f"Set quantization_group_size to {fitting[-1]}." if fitting else 'Set quantization to "int8".'
            raise ConfigError(f"{name} has {inputs} inputs, which groups of {self.group_size} do not divide\n{advice}")
        return PackedLayout(scheme.kind, group_size=self.group_size)


@dataclass(frozen=True, slots=True)
class QuantizationPlan:
    """By linear's name, the layout of each that is quantised."""

    read: Mapping[str, PackedLayout]
    """Those whose integers and scales the checkpoint has."""
    made: Mapping[str, PackedLayout]
    """Those whose weights are quantised when they come; a tied head's from the embedding."""

    @property
    def layouts(self) -> Mapping[str, PackedLayout]:
        return {**self.read, **self.made}


UNQUANTISED = QuantizationPlan({}, {})


def linears(model: nn.Module) -> dict[str, Linear]:
    """The model's linears by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear)}


def outline_matrices(model: nn.Module, layouts: Mapping[str, PackedLayout]) -> None:
    """Gives the linears of a model without memory stand-ins that have as many bytes as their packed matrices."""
    found = linears(model)
    for name, layout in layouts.items():
        stand_in = torch.empty(layout.packed_bytes(*found[name].weight.shape), dtype=torch.uint8, device="meta")
        found[name].weight = nn.Parameter(stand_in, requires_grad=False)
