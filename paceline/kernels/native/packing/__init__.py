"""How a matrix is packed for each kind of native linear, floats and small integers, and what that stands for."""

from paceline.kernels.native.packing import floats
from paceline.kernels.native.packing.base import (
    GROUP_SIZES,
    Kind,
    PackedLinear,
    QuantisedKind,
    kinds,
    packed_bytes,
    quantised_kinds,
    weight_shape,
)
from paceline.kernels.native.packing.integers import MOST_INTEGER_INPUTS
from paceline.kernels.native.packing.matrices import pack, pack_quantised, quantise, unpack
from paceline.kernels.native.packing.panels import WIDTH

__all__ = [
    "GROUP_SIZES",
    "MOST_INTEGER_INPUTS",
    "WIDTH",
    "Kind",
    "PackedLinear",
    "QuantisedKind",
    "floats",
    "kinds",
    "pack",
    "pack_quantised",
    "packed_bytes",
    "quantise",
    "quantised_kinds",
    "unpack",
    "weight_shape",
]
