"""Knows the native ops of EAGLE's own layers: rows of tokens and of features side by side, and fused features."""

from __future__ import annotations

import torch

from paceline.layers.block import JoinedBlock
from paceline.models.drafters.eagle3 import Fusion
from paceline.models.drafters.module import Joined, JoinedLinear
from paceline.runner.native.lowering import RecordAttend, blocks, entries, modules, record_attention, record_mlp
from paceline.runner.native.recorder import Recorder
from paceline.runner.native.stream import Stream, norms
from paceline.runner.native.weights import packed_of


@entries.add(Joined)
def _joined(_entry: Joined, recorder: Recorder, x: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    return _side_by_side(recorder, x, inputs)


def _side_by_side(recorder: Recorder, x: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    both = recorder.take(x.shape[1] + inputs.shape[1])
    recorder.gather(x, both[:, : x.shape[1]])
    recorder.gather(inputs, both[:, x.shape[1] :])
    recorder.give(x)
    return both


@entries.add(JoinedLinear)
def _joined_linear(entry: JoinedLinear, recorder: Recorder, x: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    both = _side_by_side(recorder, x, inputs)
    out = recorder.linear(both, packed_of(entry.linear))
    recorder.give(both)
    return out


@blocks.add(JoinedBlock)
def _joined_block(block: JoinedBlock, stream: Stream, layer: int, attend: RecordAttend) -> None:
    recorder, rows = stream.recorder, stream.rows()
    (tokens, features), both = rows.chunk(2, dim=1), recorder.take(rows.shape[1])
    normed_tokens, normed = both.chunk(2, dim=1)
    norms.of(block.attention_norm)(block.attention_norm, recorder, tokens, normed_tokens, None)
    norms.of(block.hidden_norm)(block.hidden_norm, recorder, features, normed, None)
    residual = recorder.take(features.shape[1])
    recorder.gather(normed if block.norm_before_residual else features, residual)
    stream.replace(residual)
    stream.add(record_attention(block.attention, recorder, both, layer, attend))
    stream.add(record_mlp(block.mlp, recorder, stream.normed(block.mlp_norm)))


@modules.add(Fusion)
def _fusion(fusion: Fusion, recorder: Recorder, features: torch.Tensor) -> torch.Tensor:
    normed = None
    if fusion.norm is not None or len(fusion.norms):
        normed = recorder.take(features.shape[1])
    if fusion.norm is not None and normed is not None:
        norms.of(fusion.norm)(fusion.norm, recorder, features, normed, None)
        features = normed
    if len(fusion.norms) and normed is not None:
        taps = zip(fusion.norms, features.chunk(len(fusion.norms), 1), normed.chunk(len(fusion.norms), 1), strict=True)
        for norm, tap, out in taps:
            norms.of(norm)(norm, recorder, tap, out, None)
        features = normed
    fused = recorder.linear(features, packed_of(fusion.linear))
    if normed is not None:
        recorder.give(normed)
    return fused
