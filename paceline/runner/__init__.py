"""From works and drafts to logits: assembles the flat batch and runs a model over it."""

from paceline.runner.assemble import assemble, assemble_chain_end, sample_rows
from paceline.runner.model_runner import ModelRunner

__all__ = ["ModelRunner", "assemble", "assemble_chain_end", "sample_rows"]
