"""From works and drafts to logits: assembles the flat batch and runs a model over it."""

from paceline.runner.assemble import assemble, assemble_chain_end, sample_rows
from paceline.runner.impl import Choice, model_impls, resolve_impl
from paceline.runner.model_runner import ModelRunner
from paceline.runner.numerics import numerics

__all__ = [
    "Choice",
    "ModelRunner",
    "assemble",
    "assemble_chain_end",
    "model_impls",
    "numerics",
    "resolve_impl",
    "sample_rows",
]
