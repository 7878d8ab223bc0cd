"""Knows EAGLE-3 draft modules (Li et al. 2025, arXiv 2503.01840) and 3.1's norms, as SafeAILab and vLLM store them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from paceline.layers.block import Block, JoinedBlock
from paceline.layers.linear import Linear
from paceline.layers.placement import Placement
from paceline.models.config import Fields
from paceline.models.decoder import build_attention, build_block, build_mlp, build_norm, build_spec
from paceline.models.drafters.family import DraftFamily, draft_modules
from paceline.models.drafters.layers import FIRST, LAYER_NAMES, read_layers
from paceline.models.drafters.module import DraftConfig, DraftModule, Joined
from paceline.models.drafters.source import DraftSource
from paceline.models.drafters.vocabulary import check_sharing, read_offsets, shares_table
from paceline.models.family import Part, TensorNames

NUM_TAPS = 3
FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
TAPS = "eagle_aux_hidden_state_layer_ids"
NAMES = TensorNames(
    names={
        **LAYER_NAMES,
        f"{FIRST}.hidden_norm": Part("blocks.0.hidden_norm"),
        "fc": Part("fuse.linear"),
        "input_norm": Part("fuse.norm"),
        **{f"fc_norm.{tap}": Part(f"fuse.norms.{tap}") for tap in range(NUM_TAPS)},
    },
    prefixes=(("midlayer.", f"{FIRST}."), ("model.midlayer.", f"{FIRST}."), ("model.", "")),
    skipped=(
        r"(model\.)?(d2t|t2d)",  # read by themselves
        r"(model\.)?embed_tokens\.weight",  # the same numbers as the target's
        r"(model\.)?mask_hidden",  # for drafting several tokens in one pass
        r"(model\.)?verifier_(norm|lm_head)\.weight",  # the target's own
        r".*\.rotary_emb\.inv_freq",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Eagle3Config(DraftConfig):
    """An EAGLE-3 draft module."""

    target_size: int
    """Width of each tap."""
    norm_before_residual: bool
    norm_before_fc: bool
    """All taps of a row are normed together before they are fused."""
    fc_norm: bool
    """Each tap is normed by itself."""


class Fusion(nn.Module):
    """``linear(norm(taps))``: the features of several layers side by side become one."""

    def __init__(self, linear: Linear, *, norm: nn.Module | None = None, norms: tuple[nn.Module, ...] = ()) -> None:
        """``norm`` of all taps together, or ``norms``, one for each; or neither."""
        super().__init__()
        self.norm = norm
        self.norms = nn.ModuleList(norms)
        self.linear = linear

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[T, taps * D] -> [T, F]."""
        if self.norm is not None:
            features = self.norm(features)
        if len(self.norms):
            taps = features.chunk(len(self.norms), dim=-1)
            features = torch.cat([norm(tap) for norm, tap in zip(self.norms, taps, strict=True)], dim=-1)
        fused: torch.Tensor = self.linear(features)
        return fused


def drafts_in_parallel(source: DraftSource) -> bool:
    """Whether it is P-EAGLE: EAGLE-3 that has learned what to read where no token is known yet."""
    if source.entries:
        return source.under(NAMES).has("mask_hidden", unknown=False)
    return any("peagle" in kind for kind in source.kinds)


def recognises(source: DraftSource) -> bool:
    if drafts_in_parallel(source):
        return False
    if source.entries:
        return source.under(NAMES).has_module(f"{FIRST}.hidden_norm", unknown=False)
    return any("eagle3" in kind for kind in source.kinds)


def read_config(source: DraftSource) -> Eagle3Config:
    fields, tensors, target = source.fields, source.under(NAMES), source.target.config
    own = fields.nested("eagle_config")
    flags: dict[str, Any] = {key: own.flag(key, fields.flag(key, False)) for key in FLAGS}
    layer = source.layer_fields("transformer_layer_config")
    layers = read_layers(source, layer, tensors)
    if flags["norm_before_fc"] and flags["fc_norm"]:
        raise source.misfit("norm_before_fc and fc_norm are both set", "Set the one that it was trained with.")
    if own.values.get("use_aux_hidden_state") is False:
        raise source.misfit("use_aux_hidden_state is false, which is not supported", "Give a module with three taps.")
    said = fields.values.get("target_hidden_size", target.hidden_size)
    if said != target.hidden_size:
        raise source.misfit(
            f"made for a target of hidden_size {said}, and the target has {target.hidden_size}",
            "Give the draft module that was trained for this target.",
        )
    config = Eagle3Config(
        **layers,
        **flags,
        taps=_taps(source, own),
        target_size=target.hidden_size,
        head_rows=tensors.rows("lm_head") or fields.integer("draft_vocab_size", target.vocab_size),
        shares_table=shares_table(source, tensors),
        shares_head=not tensors.has_module("lm_head", unknown="draft_vocab_size" in fields.values),
    )
    check_sharing(source, config, layer)
    return config


def _taps(source: DraftSource, own: Fields) -> tuple[int, ...]:
    """Layers of the target in the order in which they run."""
    num_layers = source.target.config.num_layers
    default = [2, num_layers // 2, num_layers - 3]
    given = own.values.get(TAPS, source.fields.values.get(TAPS))
    taps = default if given is None else given
    if given is None and not 2 < num_layers // 2 < num_layers - 3:
        advice = f"Give {TAPS} in its config.json, or a target of at least 7 layers."
        raise source.misfit(f"taps 2, L // 2 and L - 3 of a target of {num_layers} layers are not three", advice)
    if not isinstance(taps, list) or not all(type(tap) is int for tap in taps) or len(set(taps)) != NUM_TAPS:
        raise source.misfit(f"{TAPS} is {given!r}", f"Give {NUM_TAPS} different layers.")
    outside = [tap for tap in taps if not 0 <= tap <= num_layers]
    if outside:
        raise source.misfit(
            f"reads layer {outside[0]} of the target, which has {num_layers}",
            "Give the draft module that was trained for this target.",
        )
    return tuple(sorted(taps))


def build(config: Eagle3Config, on: Placement, make: Callable[..., DraftModule] = DraftModule) -> DraftModule:
    """``make``: the kind of module."""
    specs = [build_spec(config, window) for window in config.windows]
    width, size = NUM_TAPS * config.target_size, config.hidden_size
    fusion = Fusion(
        Linear.empty(width, (size,), bias=False, on=on),
        norm=build_norm(config, on, width) if config.norm_before_fc else None,
        norms=tuple(build_norm(config, on, config.target_size) for _ in range(NUM_TAPS if config.fc_norm else 0)),
    )
    first: Block = JoinedBlock(
        attention_norm=build_norm(config, on),
        hidden_norm=build_norm(config, on),
        attention=build_attention(config, specs[0], on, 2 * size),
        mlp_norm=build_norm(config, on),
        mlp=build_mlp(config, on),
        norm_before_residual=config.norm_before_residual,
    )
    return make(
        config,
        blocks=[first, *(build_block(config, spec, on) for spec in specs[1:])],
        layer_specs=specs,
        norm=build_norm(config, on),
        entry=Joined(size),
        fuse=fusion,
        on=on,
    )


def token_map(source: DraftSource, config: Eagle3Config) -> torch.Tensor | None:
    return read_offsets(source, source.under(NAMES), config.head_rows)


draft_modules.add("eagle3")(
    DraftFamily.of(NAMES, recognises=recognises, read_config=read_config, build=build, token_map=token_map)
)
