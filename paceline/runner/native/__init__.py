"""A model's passes as one native call each: its modules are lowered once to a list of native ops."""

from paceline.runner.native.executor import NativeExecutor
from paceline.runner.native.lowering import obstacle, obstacle_of_layers
from paceline.runner.native.weights import pack_weights, packed_growth

__all__ = ["NativeExecutor", "obstacle", "obstacle_of_layers", "pack_weights", "packed_growth"]
