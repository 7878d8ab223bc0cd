"""Estimates the memory that passes take for what lies between their ops."""

from __future__ import annotations

from paceline.layers.linear import Linear
from paceline.models import CausalLM

FLOAT = 4
"""Bytes of a number between ops: float32."""


def activation_bytes(model: CausalLM, *, rows: int, samples: int) -> int:
    """Bytes of the buffers of a pass over ``rows`` rows, of which ``samples`` give logits.

    A layer's products lie side by side, beside the residual stream and two normed copies; buffers are used again by the
    next layer. ``model`` may have no memory.
    """
    widest = max(
        sum(module.weight.shape[0] for module in block.modules() if isinstance(module, Linear))
        for block in model.blocks
    )
    hidden, vocabulary = model.config.hidden_size, model.config.vocab_size
    return FLOAT * (rows * (3 * hidden + widest) + samples * (hidden + vocabulary))
