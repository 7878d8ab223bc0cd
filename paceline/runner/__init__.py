"""From works and drafts to logits: assembles the flat batch and runs a model over it."""

from paceline.runner.assemble import assemble, assemble_chain_end, sample_rows
from paceline.runner.impl import Choice, model_impls, resolve_impl
from paceline.runner.model_runner import ModelRunner
from paceline.runner.native.rounds import Taken
from paceline.runner.numerics import numerics
from paceline.runner.rounds import RoundsRunner

__all__ = [
    "Choice",
    "ModelRunner",
    "RoundsRunner",
    "Taken",
    "assemble",
    "assemble_chain_end",
    "model_impls",
    "numerics",
    "resolve_impl",
    "sample_rows",
]
