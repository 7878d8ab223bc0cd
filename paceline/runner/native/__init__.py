"""A model's passes as one native call each: its modules are lowered once to a list of native ops."""

from paceline.runner.native import draft_layers, joined_layers, medusa_layers
from paceline.runner.native.executor import NativeExecutor
from paceline.runner.native.lowering import obstacle, obstacle_of_layers
from paceline.runner.native.weights import pack_weights, packed_growth

# Importing such a module files its layers in the registries.
LAYER_MODULES = (draft_layers, joined_layers, medusa_layers)

__all__ = ["LAYER_MODULES", "NativeExecutor", "obstacle", "obstacle_of_layers", "pack_weights", "packed_growth"]
