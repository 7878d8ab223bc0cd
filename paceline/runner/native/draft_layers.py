"""Knows the native ops of what MTP and DFlash modules alone have: an entry, a context, fused and normed features."""

from __future__ import annotations

import torch

from paceline.models.drafters.dflash import ContextBlock, ContextEntry, NormedFusion
from paceline.models.drafters.mtp import MTPEntry
from paceline.runner.native.lowering import RecordAttend, blocks, entries, modules
from paceline.runner.native.recorder import Recorder
from paceline.runner.native.stream import Stream, norms
from paceline.runner.native.weights import packed_of


@entries.add(MTPEntry)
def _mtp_entry(entry: MTPEntry, recorder: Recorder, x: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    both = recorder.take(x.shape[1] + inputs.shape[1])
    first, second = both.chunk(2, dim=1)  # both are as wide as the stream
    tokens, hidden = (second, first) if entry.hidden_first else (first, second)
    norms.of(entry.token_norm)(entry.token_norm, recorder, x, tokens, None)
    norms.of(entry.hidden_norm)(entry.hidden_norm, recorder, inputs, hidden, None)
    recorder.give(x)
    joined = recorder.linear(both, packed_of(entry.project))
    recorder.give(both)
    return joined


@entries.add(ContextEntry)
def _context_entry(_entry: ContextEntry, recorder: Recorder, x: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    recorder.gather(inputs, x)
    return x


@blocks.add(ContextBlock)
def _context(block: ContextBlock, stream: Stream, layer: int, attend: RecordAttend) -> None:
    qkv = stream.recorder.linear(stream.rows(), packed_of(block.attention.qkv))
    attend(stream.recorder, layer, qkv, block.attention.head_norm)
    stream.recorder.give(qkv)


@modules.add(NormedFusion)
def _normed_fusion(fusion: NormedFusion, recorder: Recorder, features: torch.Tensor) -> torch.Tensor:
    fused = recorder.linear(features, packed_of(fusion.linear))
    norms.of(fusion.norm)(fusion.norm, recorder, fused, fused, None)
    return fused
