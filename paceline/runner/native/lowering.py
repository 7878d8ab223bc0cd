"""Knows the native ops of every layer type: a model's modules are visited once, in the order in which they compute.

A new layer type is one function registered here; a model that has a type without one is computed in torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from paceline.kernels.native import gate, library
from paceline.layers.attention import Attention
from paceline.layers.block import ParallelBlock, PostNormBlock, PreNormBlock, SandwichNormBlock
from paceline.layers.embedding import InputEmbedding
from paceline.layers.linear import Linear
from paceline.layers.mlp import MLP, GatedMLP
from paceline.layers.norm import HeadNorm, LayerNorm, RMSNorm
from paceline.layers.quantized import FLOAT_KINDS
from paceline.models import CausalLM
from paceline.runner.native.by_type import ByType
from paceline.runner.native.recorder import Recorder
from paceline.runner.native.sizes import size_obstacle
from paceline.runner.native.stream import Stream, norms
from paceline.runner.native.weights import packed_of


class RecordAttend(Protocol):
    """Records what turns packed query, key and value heads into attended heads."""

    def __call__(
        self, recorder: Recorder, layer: int, qkv: torch.Tensor, head_norm: HeadNorm | None, /
    ) -> torch.Tensor:
        """qkv [T, (H + 2 KV) * dim] -> [T, H * dim], which may lie in qkv. K/V are written to the pool."""
        ...


class RecordBlock(Protocol):
    def __call__(self, block: Any, stream: Stream, layer: int, attend: RecordAttend, /) -> None:
        """What a layer does to the residual stream."""
        ...


class RecordMLP(Protocol):
    def __call__(self, mlp: Any, recorder: Recorder, x: torch.Tensor, /) -> torch.Tensor:
        """x [T, D], whose buffer is given back, -> [T, D]."""
        ...


class RecordEntry(Protocol):
    def __call__(self, entry: Any, recorder: Recorder, x: torch.Tensor, inputs: torch.Tensor, /) -> torch.Tensor:
        """Token rows x [T, D], whose buffer is given back, and inputs [T, input_size], which stay -> the stream."""
        ...


RecordModule = Callable[..., torch.Tensor]
"""(module, recorder, *inputs): inputs [T, in], which stay, -> [T, out], in a new buffer or in an input itself."""

blocks: ByType[RecordBlock] = ByType()
entries: ByType[RecordEntry] = ByType()
mlps: ByType[RecordMLP] = ByType()
modules: ByType[RecordModule] = ByType()
"""Of modules that stand by themselves: heads that draft, and what fuses the features that they read."""


def record_mlp(mlp: nn.Module, recorder: Recorder, x: torch.Tensor) -> torch.Tensor:
    return mlps.of(mlp)(mlp, recorder, x)


@blocks.add(PreNormBlock)
def _pre_norm(block: PreNormBlock, stream: Stream, layer: int, attend: RecordAttend) -> None:
    stream.add(record_attention(block.attention, stream.recorder, stream.normed(block.attention_norm), layer, attend))
    stream.add(record_mlp(block.mlp, stream.recorder, stream.normed(block.mlp_norm)))


@blocks.add(PostNormBlock)
def _post_norm(block: PostNormBlock, stream: Stream, layer: int, attend: RecordAttend) -> None:
    stream.add(record_attention(block.attention, stream.recorder, stream.copied(), layer, attend))
    stream.replace(stream.normed(block.attention_norm))
    stream.add(record_mlp(block.mlp, stream.recorder, stream.copied()))
    stream.replace(stream.normed(block.mlp_norm))


@blocks.add(ParallelBlock)
def _parallel(block: ParallelBlock, stream: Stream, layer: int, attend: RecordAttend) -> None:
    attended = record_attention(block.attention, stream.recorder, stream.normed(block.attention_norm), layer, attend)
    widened = stream.normed(block.mlp_norm)
    stream.add(attended)
    stream.add(record_mlp(block.mlp, stream.recorder, widened))


@blocks.add(SandwichNormBlock)
def _sandwich_norm(block: SandwichNormBlock, stream: Stream, layer: int, attend: RecordAttend) -> None:
    recorder = stream.recorder
    attended = record_attention(block.attention, recorder, stream.normed(block.attention_norm), layer, attend)
    norms.of(block.attention_out_norm)(block.attention_out_norm, recorder, attended, attended, None)
    stream.add(attended)
    widened = record_mlp(block.mlp, recorder, stream.normed(block.mlp_norm))
    norms.of(block.mlp_out_norm)(block.mlp_out_norm, recorder, widened, widened, None)
    stream.add(widened)


def record_attention(
    attention: Attention, recorder: Recorder, x: torch.Tensor, layer: int, attend: RecordAttend
) -> torch.Tensor:
    """x [T, D], whose buffer is given back, -> [T, D]."""
    qkv = recorder.linear(x, packed_of(attention.qkv))
    recorder.give(x)
    attended = attend(recorder, layer, qkv, attention.head_norm)
    out = recorder.linear(attended, packed_of(attention.out))
    recorder.give(qkv)
    return out


@mlps.add(GatedMLP)
def _gated_mlp(mlp: GatedMLP, recorder: Recorder, x: torch.Tensor) -> torch.Tensor:
    both = recorder.linear(x, packed_of(mlp.gate_up))
    recorder.give(x)
    activated, up = both.chunk(2, dim=1)
    recorder.activate(activated, gate.activations[mlp.activation_name], up)
    out = recorder.linear(activated, packed_of(mlp.down))
    recorder.give(both)
    return out


@mlps.add(MLP)
def _plain_mlp(mlp: MLP, recorder: Recorder, x: torch.Tensor) -> torch.Tensor:
    activated = recorder.linear(x, packed_of(mlp.up))
    recorder.give(x)
    recorder.activate(activated, gate.activations[mlp.activation_name], None)
    out = recorder.linear(activated, packed_of(mlp.down))
    recorder.give(activated)
    return out


@modules.add(nn.Identity)
def _identity(_module: nn.Identity, _recorder: Recorder, x: torch.Tensor) -> torch.Tensor:
    return x


@modules.add(Linear)
def _linear(module: Linear, recorder: Recorder, x: torch.Tensor) -> torch.Tensor:
    return recorder.linear(x, packed_of(module))


@modules.add(RMSNorm)
@modules.add(LayerNorm)
def _norm(module: nn.Module, recorder: Recorder, x: torch.Tensor) -> torch.Tensor:
    out = recorder.take(x.shape[1])
    norms.of(module)(module, recorder, x, out, None)
    return out


def record_embedding(
    embedding: InputEmbedding, recorder: Recorder, token_ids: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Token ids i64[capacity] and positions i64[capacity] -> [T, D], in a new buffer."""
    table = embedding.tokens.weight.detach()
    x = recorder.take(table.shape[1])
    recorder.gather(table, x, token_ids, scale=1.0 if embedding.scale is None else embedding.scale)
    if embedding.widen is not None:
        narrow, x = x, recorder.linear(x, packed_of(embedding.widen))
        recorder.give(narrow)
    if embedding.positions is not None:
        learned = embedding.positions.weight.detach()
        recorder.gather(learned, x, positions, offset=embedding.first_position, add=True)
    return x


def _without_native_form(model: CausalLM) -> str | None:
    """The layer type or activation that cannot be recorded, if the model has one."""
    if model.entry is not None and model.entry not in entries:
        return type(model.entry).__name__
    for block in model.blocks:
        if block not in blocks:
            return type(block).__name__
        mlp: Any = block.mlp
        if mlp not in mlps:
            return type(mlp).__name__
        if mlp.activation_name not in gate.activations:
            return f"the activation {mlp.activation_name}"
    outer = [part for owner in (model, *model.blocks) for name, part in owner.named_children() if name.endswith("norm")]
    return next((type(norm).__name__ for norm in outer if norm not in norms), None)


def obstacle(model: CausalLM, device: torch.device) -> str | None:
    """Why native kernels cannot compute the model, if they cannot."""
    return _obstacle_of_any(model, device) or obstacle_of_layers(model, device)


def _obstacle_of_any(model: CausalLM, device: torch.device) -> str | None:
    """What keeps native kernels from models of this dtype on this device, whatever their layers are."""
    absence = library.reason()
    if absence is not None:
        return absence.cause
    if device.type != "cpu":
        return f"its kernels run on the CPU, not on {device}"
    if model.dtype not in FLOAT_KINDS:
        return f"its kernels do not know {str(model.dtype).removeprefix('torch.')}"
    return None


def obstacle_of_layers(model: CausalLM, device: torch.device) -> str | None:
    """What of the model itself keeps native kernels from it, where they could compute another one."""
    if _obstacle_of_any(model, device) is not None:
        return None
    lacking = _without_native_form(model)
    return size_obstacle(model) if lacking is None else f"it has no form of {lacking}"
