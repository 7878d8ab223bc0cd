"""Knows DFlash draft modules (2026, arXiv 2602.06036), as their authors and vLLM's speculators project store them.

Its layers attend to the context, whose keys and values each of them computes of the target's fused features alone, and
to a block of the last known token and mask tokens, in both directions. See ``block`` for how it is run: ``context``
writes the former, the module itself runs the latter.

Refused are layers with a window, which would see each other causally within a block, and a width other than the
target's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from paceline.core.layer import Attend
from paceline.layers.block import Block, PreNormBlock
from paceline.layers.embedding import InputEmbedding
from paceline.layers.linear import Linear
from paceline.layers.placement import Placement
from paceline.layers.rotary import Rotary, Rotation
from paceline.models.base import CausalLM, Entry
from paceline.models.config import Fields
from paceline.models.decoder import build_block, build_norm, build_spec
from paceline.models.drafters.block import BlockDraftModule, BlockSpec, mask_token
from paceline.models.drafters.family import DraftFamily, draft_modules
from paceline.models.drafters.layers import FIRST, LAYER_NAMES, read_layers
from paceline.models.drafters.module import DraftConfig
from paceline.models.drafters.source import DraftSource
from paceline.models.drafters.vocabulary import OTHER, check_sharing, read_offsets, shares_table
from paceline.models.family import Part, TensorNames

NAMES = TensorNames(
    names={**LAYER_NAMES, "fc": Part("fuse.linear"), "hidden_norm": Part("fuse.norm")},
    prefixes=(("model.", ""),),
    skipped=(
        r"(model\.)?(d2t|t2d)",  # read by themselves
        r"(model\.)?verifier_(norm|lm_head)\.weight",  # the target's own
        r".*\.rotary_emb\.inv_freq",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DFlashConfig(DraftConfig):
    """A DFlash draft module."""

    block: BlockSpec


class NormedFusion(nn.Module):
    """``norm(linear(taps))``: the features of several layers side by side become one."""

    def __init__(self, linear: Linear, norm: nn.Module) -> None:
        super().__init__()
        self.linear, self.norm = linear, norm

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[T, taps * D] -> [T, D]."""
        fused: torch.Tensor = self.norm(self.linear(features))
        return fused


class ContextEntry(Entry):
    """The stream is what is read beside the tokens; these do not matter."""

    def __init__(self, input_size: int) -> None:
        super().__init__()
        self.input_size = input_size

    def forward(self, x: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """[T, D], [T, D] -> [T, D]."""
        return inputs


class ContextBlock(Block):
    """Keys and values of the stream as it came; leaves it as it is. Its parts are those of a layer of the module."""

    def forward(self, layer: int, x: torch.Tensor, rotation: Rotation | None, attend: Attend) -> torch.Tensor:
        self.attention(layer, x, rotation, attend)  # only what it writes counts
        return x


class DFlashModule(BlockDraftModule):
    """Runs blocks; ``context``, of the same layers, writes what they attend to."""

    @property
    def feature_size(self) -> int:
        return self.config.hidden_size

    def share(self, target: CausalLM) -> None:
        super().share(target)
        self.context = self._writer()

    def _writer(self) -> CausalLM:
        outside = Placement(self.dtype, torch.device("meta"))
        writer = CausalLM(
            replace(self.config, tied=False),
            embedding=InputEmbedding(1, self.config.hidden_size, on=outside),
            blocks=[_context_block(block) for block in self.blocks],
            layer_specs=self.layer_specs,
            norm=nn.Identity(),
            rotaries=[rotary for rotary in self.rotaries if isinstance(rotary, Rotary)],
            rotary_of=self.rotary_of,
            entry=ContextEntry(self.config.hidden_size),
            head_rows=1,
            on=Placement(self.dtype, self.device),
        )
        writer.embedding = self.embedding
        if not writer.head.weight.is_meta:
            nn.init.zeros_(writer.head.weight)  # nobody asks for its logits
        return writer


def _context_block(block: nn.Module) -> ContextBlock:
    assert isinstance(block, PreNormBlock)
    return ContextBlock(
        attention_norm=block.attention_norm, attention=block.attention, mlp_norm=block.mlp_norm, mlp=block.mlp
    )


def recognises(source: DraftSource) -> bool:
    if source.entries:
        tensors = source.under(NAMES)
        found = [tensors.has_module(name, unknown=False) for name in ("fc", "hidden_norm", f"{FIRST}.hidden_norm")]
        return found == [True, True, False]
    values = source.fields.values
    return "dflash_config" in values or values.get("speculators_model_type") == "dflash"


def read_config(source: DraftSource) -> DFlashConfig:
    fields, tensors, target = source.fields, source.under(NAMES), source.target.config
    own = fields.nested("dflash_config")
    layer = source.layer_fields("transformer_layer_config")
    layers = read_layers(source, layer, tensors)
    if layers["hidden_size"] != target.hidden_size:
        raise source.misfit(f"hidden_size is {layers['hidden_size']}, and the target has {target.hidden_size}", OTHER)
    if any(window is not None for window in layers["windows"]):
        raise source.misfit(
            "its layers have a sliding window, which is not supported", "Give a module whose layers see all."
        )
    samples_first = fields.flag("sample_from_anchor", False)
    size = own.integer("block_size", fields.integer("block_size", 8, low=2), low=2)
    block = BlockSpec(
        mask_token_id=mask_token(source, own, fields),
        max_tokens=size if samples_first else size - 1,
        bidirectional=True,
        samples_first=samples_first,
    )
    config = DFlashConfig(
        **layers,
        taps=_taps(source, own, layers["num_layers"]),
        block=block,
        head_rows=tensors.rows("lm_head") or fields.integer("draft_vocab_size", target.vocab_size),
        shares_table=shares_table(source, tensors),
        shares_head=not tensors.has_module("lm_head", unknown=False),
    )
    check_sharing(source, config, layer)
    return config


def _taps(source: DraftSource, own: Fields, num_draft_layers: int) -> tuple[int, ...]:
    """speculators count the layers that features enter, DFlash's authors those that they leave."""
    fields, count = source.fields, source.target.config.num_layers
    said = fields.values.get("num_target_layers", count)
    if said != count:
        raise source.misfit(f"made for a target of {said} layers, and the target has {count}", OTHER)
    key = "aux_hidden_state_layer_ids"
    if key in fields.values:
        given, taps = fields.values[key], fields.values[key]
    else:
        key = "target_layer_ids"
        given = own.values.get(key, _spread(count, num_draft_layers))
        taps = [layer + 1 if type(layer) is int else layer for layer in given] if isinstance(given, list) else given
    if not isinstance(taps, list) or not taps or not all(type(tap) is int and 0 <= tap <= count for tap in taps):
        raise source.misfit(f"{key} is {given!r}, and the target has {count} layers", OTHER)
    if list(taps) != sorted(set(taps)):
        raise source.misfit(f"{key} is {given!r}, which does not rise", "Give a module whose taps are in order.")
    return tuple(taps)


def _spread(num_layers: int, count: int) -> list[int]:
    """The authors' default: evenly from the second layer to the third last."""
    if count == 1:
        return [num_layers // 2]
    return [round(1 + index * (num_layers - 4) / (count - 1)) for index in range(count)]


def build(config: DFlashConfig, on: Placement) -> DFlashModule:
    specs, size = [build_spec(config, None) for _ in config.windows], config.hidden_size
    linear = Linear.empty(len(config.taps) * size, (size,), bias=False, on=on)
    return DFlashModule(
        config,
        block=config.block,
        blocks=[build_block(config, spec, on) for spec in specs],
        layer_specs=specs,
        norm=build_norm(config, on),
        entry=None,
        fuse=NormedFusion(linear, build_norm(config, on)),
        on=on,
    )


def token_map(source: DraftSource, config: DFlashConfig) -> torch.Tensor | None:
    return read_offsets(source, source.under(NAMES), config.head_rows)


draft_modules.add("dflash")(
    DraftFamily.of(NAMES, recognises=recognises, read_config=read_config, build=build, token_map=token_map)
)
