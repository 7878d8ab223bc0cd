"""Knows the modules that a model was trained with to predict later tokens (MTP), in the layouts of their makers.

One module is one decoder layer of the target's own form over ``project(norm(token row), norm(hidden row))``; the hidden
row of a known token is what the target computed of the token before, after its final norm. Embedding table and output
matrix are the target's. The module drafts a chain: each further row reads what the module computed of the row before.
Where a checkpoint has several modules only the first one drafts, recursively, as vLLM does it.

Refused are modules whose layer is of another kind than the target's: mixtures of experts and multi-head latent
attention (DeepSeek-V3, GLM-4.5), gated attention (Qwen3-Next, Qwen3.5). Meta's parallel heads (arXiv 2404.19737) are
left out: they were published as pickles alone, and each is a layer of its own over the trunk, which predicts one token
more behind the same row, where a draft here has a row per token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch

from paceline.layers.linear import Linear
from paceline.layers.norm import RMSNorm
from paceline.layers.placement import Placement
from paceline.models.base import Entry
from paceline.models.decoder import DecoderConfig, build_block, build_norm, build_spec
from paceline.models.drafters.family import DraftFamily, draft_modules
from paceline.models.drafters.layers import LAYER_NAMES
from paceline.models.drafters.module import DraftConfig, DraftModule
from paceline.models.drafters.source import DraftSource
from paceline.models.drafters.vocabulary import OTHER
from paceline.models.family import Part, TensorNames
from paceline.models.tying import TABLE

LAYER = "layers.{layer}."
FOREIGN: Mapping[str, str] = {
    r".*\.mlp\.(experts|gate|shared_experts?)\..*": "is a mixture of experts",
    r".*\.self_attn\.(q_a_proj|kv_a_proj_with_mqa|kv_b_proj)\..*": "has multi-head latent attention",
}
"""Tensors of layers that are of no form known here."""


class MTPEntry(Entry):
    """``project`` of a token row and the hidden row before it, both normed, side by side."""

    def __init__(self, *, token_norm: RMSNorm, hidden_norm: RMSNorm, project: Linear, hidden_first: bool) -> None:
        """``project`` reads [T, 2D]: token rows first, or hidden rows if ``hidden_first``."""
        super().__init__()
        self.token_norm, self.hidden_norm, self.project = token_norm, hidden_norm, project
        self.hidden_first = hidden_first
        self.input_size = hidden_norm.shape[0]

    def forward(self, x: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """[T, D], [T, D] -> [T, D]."""
        tokens, hidden = self.token_norm(x), self.hidden_norm(inputs)
        y: torch.Tensor = self.project(torch.cat((hidden, tokens) if self.hidden_first else (tokens, hidden), dim=-1))
        return y


def read_config(source: DraftSource, *, prefix: str | None, norm_output: bool) -> DraftConfig:
    """
    Args:
        source: the target's own directory, or another one.
        prefix: how the names of the module's tensors begin, if there are tensors.
        norm_output: further rows read what is normed.

    Raises:
        CheckpointError: a layer of another kind than the target's, or a module for another target.
    """
    target = source.target.config
    if not isinstance(target, DecoderConfig):
        raise source.misfit(f"an MTP module for a target of family {target.family!r}", OTHER)
    for entry in source.entries:
        kind = next((kind for tensor, kind in FOREIGN.items() if re.fullmatch(tensor, entry.name)), None)
        if kind is not None and prefix is not None and entry.name.startswith(prefix):
            raise source.misfit(
                f"the layer of the MTP module {kind} (tensor {entry.name!r}), which is not supported",
                "Give an MTP module of a dense layer, or draft by another method.",
            )
    _check_sizes(source)
    fields = {name: getattr(target, name) for name in DecoderConfig.__dataclass_fields__}
    last = {"num_layers": 1, "windows": target.windows[-1:], "rotary_of": target.rotary_of[-1:], "tied": False}
    return DraftConfig(
        **{**fields, **last},
        taps=(target.num_layers,),
        norm_output=norm_output,
        head_rows=target.vocab_size,
        shares_table=True,
        shares_head=True,
    )


def _check_sizes(source: DraftSource) -> None:
    target, said = source.target.config, source.fields
    if "transformer_layer_config" in said.values:
        said = said.nested("transformer_layer_config")
    for key, size in (("hidden_size", target.hidden_size), ("vocab_size", target.vocab_size)):
        if said.values.get(key, size) != size:
            raise source.misfit(f"{key} is {said.values[key]!r}, and the target has {size}", OTHER)


def build(config: DraftConfig, on: Placement, *, hidden_first: bool) -> DraftModule:
    spec, size = build_spec(config, config.windows[0]), config.hidden_size
    entry = MTPEntry(
        token_norm=build_norm(config, on),
        hidden_norm=build_norm(config, on),
        project=Linear.empty(2 * size, (size,), bias=False, on=on),
        hidden_first=hidden_first,
    )
    return DraftModule(
        config,
        blocks=[build_block(config, spec, on)],
        layer_specs=[spec],
        norm=build_norm(config, on),
        entry=entry,
        fuse=None,
        on=on,
    )


def layer_parts(prefix: str) -> dict[str, Part]:
    """The only decoder layer's parts under Llama's names, behind ``prefix``."""
    parts = {name.removeprefix(LAYER): part for name, part in LAYER_NAMES.items() if name.startswith(LAYER)}
    return {f"{prefix}{name}": replace(part, module=part.module.format(layer=0)) for name, part in parts.items()}


def add_layout(
    name: str,
    start: str,
    *,
    parts: tuple[str, str, str, str],
    layer: str = "",
    besides: str = "(?!)",
    kind: str | None = None,
    hidden_first: bool = False,
    norm_output: bool = True,
) -> None:
    """Files a layout.

    Args:
        name: in the registry.
        start: a regular expression; what it matches is put before the names of the module's tensors.
        parts: the maker's names of the norm of token rows, that of hidden rows, what projects them, and the last norm.
        layer: what is put before those of the decoder layer besides.
        besides: a regular expression of those that hold nothing more.
        kind: what config.json says where there are no tensors yet.
        hidden_first: as of ``MTPEntry``.
        norm_output: as of ``DraftConfig``.
    """

    def prefix(source: DraftSource) -> str | None:
        found = (re.match(start, entry.name) for entry in source.entries)
        return min((match[0] for match in found if match), default=None)

    def recognises(source: DraftSource) -> bool:
        said = (source.fields.values.get(key) for key in ("model_type", "speculators_model_type"))
        return kind is not None and kind in said if not source.entries else prefix(source) is not None

    def named(source: DraftSource) -> TensorNames:
        first = prefix(source) or ""
        ours = ("entry.token_norm", "entry.hidden_norm", "entry.project", "norm")
        joining = {f"{first}{part}": Part(module) for part, module in zip(parts, ours, strict=True)}
        joining[f"{first}embed_tokens"] = Part(TABLE)  # which the module does without
        others = rf"(?!{re.escape(first)}).*|{re.escape(first)}({besides})"
        return TensorNames(names=layer_parts(f"{first}{layer}") | joining, skipped=(others,))

    draft_modules.add(name)(
        DraftFamily(
            names={},
            named=named,
            recognises=recognises,
            read_config=lambda source: read_config(source, prefix=prefix(source), norm_output=norm_output),
            build=partial(build, hidden_first=hidden_first),
            token_map=lambda _source, _config: None,
        )
    )


SPELLED_OUT = ("token_layernorm", "hidden_layernorm", "input_proj", "final_layernorm")
add_layout("mtp_mimo", r"model\.mtp_layers\.0\.", parts=SPELLED_OUT, kind="mimo", hidden_first=True)
# What vLLM's speculators project trains: other than MiMo's, its matrix reads token rows first.
add_layout("mtp_speculators", r"mtp_layers\.0\.", parts=SPELLED_OUT, kind="mtp")
add_layout(
    "mtp_qwen",
    r"mtp\.(?=fc\.)",
    parts=("pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "norm"),
    layer="layers.0.",
    besides=r"layers\.[1-9]\d*\..*",
)
# It counts as one more of the target's layers. Table and output matrix are stored again, and are the target's.
add_layout(
    "mtp_deepseek",
    r"model\.layers\.\d+\.(?=eh_proj\.)",
    parts=("enorm", "hnorm", "eh_proj", "shared_head.norm"),
    besides=r"(embed_tokens|shared_head\.head)\..*",
    norm_output=False,
)
