"""Knows the native ops of Medusa heads: residual blocks, then an output matrix, over hidden rows that stay."""

from __future__ import annotations

import torch

from paceline.kernels.native import gate
from paceline.models.drafters.medusa_heads import HeadLogits, MedusaHead, ResidualBlock
from paceline.runner.native.lowering import modules
from paceline.runner.native.recorded_pass import columns_of
from paceline.runner.native.recorder import Recorder
from paceline.runner.native.weights import packed_of


@modules.add(ResidualBlock)
def _residual(block: ResidualBlock, recorder: Recorder, x: torch.Tensor) -> torch.Tensor:
    out = recorder.linear(x, packed_of(block.linear))
    recorder.activate(out, gate.activations["silu"], None)
    recorder.gather(x, out, add=True)
    return out


@modules.add(MedusaHead)
def _medusa_head(head: MedusaHead, recorder: Recorder, hidden: torch.Tensor) -> torch.Tensor:
    x = hidden
    for block in head.blocks:
        previous, x = x, modules.of(block)(block, recorder, x)
        if previous is not hidden:
            recorder.give(previous)
    scores = recorder.linear(x, packed_of(head.head))
    if x is not hidden:
        recorder.give(x)
    return scores


@modules.add(HeadLogits)
def _head_logits(logits: HeadLogits, recorder: Recorder, hidden: torch.Tensor) -> torch.Tensor:
    scores, heads = _medusa_head(logits.head, recorder, hidden), logits.heads
    if heads.token_map is None:
        return scores
    expanded = recorder.expand(scores, columns_of(heads.token_map, heads.config.vocab_size))
    recorder.give(scores)
    return expanded
