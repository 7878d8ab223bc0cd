"""From the plan of a step to logits and tokens: rows, passes, and rounds of them that are replayed as one call."""

from paceline.runner.activations import activation_bytes
from paceline.runner.batching import verify_rows
from paceline.runner.capture import CapturedStep, GraphDraft, StepGraphs
from paceline.runner.eager import EagerBuilder
from paceline.runner.executor import GraphBuilder, GraphResult
from paceline.runner.features import KeptFeatures
from paceline.runner.impl import Choice, model_impls, resolve_impl
from paceline.runner.model_runner import ModelRunner
from paceline.runner.numerics import numerics
from paceline.runner.rows import MaskNodes, Rows, RowSpec, RowState, place
from paceline.runner.stages import DraftStart

__all__ = [
    "CapturedStep",
    "Choice",
    "DraftStart",
    "EagerBuilder",
    "GraphBuilder",
    "GraphDraft",
    "GraphResult",
    "KeptFeatures",
    "MaskNodes",
    "ModelRunner",
    "RowSpec",
    "RowState",
    "Rows",
    "StepGraphs",
    "activation_bytes",
    "model_impls",
    "numerics",
    "place",
    "resolve_impl",
    "verify_rows",
]
