"""Knows of what kind the weights of a model's linears are, and in which pages they lie: what its probes should use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch

from paceline.benchmark.probes import products
from paceline.core.pages import huge_share
from paceline.kernels.native.packing import PackedLinear
from paceline.layers.linear import Linear
from paceline.models import CausalLM

_KINDS = {dtype: kind for kind, dtype in products.items() if dtype.is_floating_point}


def weights(model: CausalLM) -> Iterator[tuple[str, torch.Tensor]]:
    """(kind, what a product reads) of every linear; an embedding is only looked up in."""
    for module in model.modules():
        if isinstance(module, Linear):
            packed = getattr(module, "packed", None)
            if isinstance(packed, PackedLinear):
                yield packed.kind, packed.weight
            else:
                yield _KINDS[module.weight.dtype], module.weight


def main_kind(model: CausalLM) -> str:
    """Of most bytes of weights."""
    sizes: Counter[str] = Counter()
    for kind, weight in weights(model):
        sizes[kind] += weight.nbytes
    return max(sizes, key=lambda kind: sizes[kind])


def main_pages(model: CausalLM) -> str:
    """ "huge" if the largest weights lie in huge pages, else "default"; a GPU's have no pages to choose."""
    largest = max((weight for _, weight in weights(model)), key=lambda weight: weight.nbytes)
    share = huge_share(largest.data_ptr()) if largest.device.type == "cpu" else None
    return "huge" if share is not None and share > 0.5 else "default"
