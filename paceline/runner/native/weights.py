"""Knows how the weights of a model become packed ones, and when the unpacked ones are given up."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from paceline.kernels.native.packing import PackedLinear
from paceline.layers.linear import Linear
from paceline.layers.quantized import pack_linear
from paceline.models import CausalLM
from paceline.runner.native.arena import Arena


def packed_of(module: Linear) -> PackedLinear:
    """The packed weights of a module that ``pack_weights`` has seen."""
    if module.packed is None:
        raise ValueError("the weights of this module were not packed\nCall pack_weights(model) first.")
    return module.packed


def pack_weights(model: CausalLM, *, release: bool) -> None:
    """Packs every linear that is not packed yet, one by one; one that came quantised only moves to where others lie.

    ``release`` frees what was packed, so that torch can compute the model no more; a matrix that is the embedding table
    as well stays.
    """
    arena = Arena()
    tables = {id(model.embedding.tokens.weight)}
    for module in _linears(model):
        if module.packed is None or (release and module.quantised):
            packed = pack_linear(module)
            module.packed = replace(packed, weight=arena.copy(packed.weight))
        if release and id(module.weight) not in tables:
            module.release()


def _linears(model: nn.Module) -> list[Linear]:
    return [module for module in model.modules() if isinstance(module, Linear)]
