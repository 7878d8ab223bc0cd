"""Knows how the weights of a model become packed ones, and when the unpacked ones are given up."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from paceline.kernels.native.packing import PackedLinear, packed_bytes
from paceline.layers.linear import Linear
from paceline.layers.quantized import FLOAT_KINDS, pack_linear
from paceline.models import CausalLM
from paceline.runner.native.arena import Arena


def packed_of(module: Linear) -> PackedLinear:
    """The packed weights of a module that ``pack_weights`` has seen."""
    if module.packed is None:
        raise ValueError("the weights of this module were not packed\nCall pack_weights(model) first.")
    return module.packed


def pack_weights(model: nn.Module, *, release: bool) -> None:
    """Packs every linear that is not packed yet, one by one; one that came quantised only moves to where others lie.

    ``release`` frees what was packed, so that torch can compute the model no more; a matrix that is the embedding table
    as well stays.
    """
    arena = Arena()
    tables = {id(model.embedding.tokens.weight)} if isinstance(model, CausalLM) else set()
    for module in _linears(model):
        if module.packed is None or (release and module.quantised):
            packed = pack_linear(module)
            module.packed = replace(packed, weight=arena.copy(packed.weight))
        if release and id(module.weight) not in tables:
            module.release()


def packed_growth(model: CausalLM) -> int:
    """Bytes that a model, which may have no memory yet, takes more once its weights are packed and torch's freed."""
    tables = {id(model.embedding.tokens.weight)}
    growth = 0
    for module in _linears(model):
        kind = FLOAT_KINDS.get(module.weight.dtype)
        if module.packed is not None or kind is None:
            continue
        out_features, in_features = module.weight.shape
        growth += packed_bytes(kind, in_features, out_features, bias=module.bias is not None)
        if id(module.weight) not in tables:
            growth -= module.weight.numel() * module.weight.element_size()
        if module.bias is not None and id(module.weight) not in tables:
            growth -= module.bias.numel() * module.bias.element_size()
    return growth


def _linears(model: nn.Module) -> list[Linear]:
    return [module for module in model.modules() if isinstance(module, Linear)]
