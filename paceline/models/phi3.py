"""Knows the Phi-3 family (Phi-3, Phi-4; arXiv 2404.14219): Llama with fused matrices, windows and LongRoPE."""

from __future__ import annotations

from paceline.models.config import MAX_LAYERS, Fields
from paceline.models.decoder import NAMES, PREFIXES, SKIPPED, THEIRS, DecoderConfig, build, read_decoder
from paceline.models.family import LAYER, Family, Part, families

# The checkpoint's rows lie as ours do: queries, keys, values; gate, up.
FUSED = {
    f"{THEIRS}.self_attn.qkv_proj": Part(f"{LAYER}.attention.qkv"),
    f"{THEIRS}.mlp.gate_up_proj": Part(f"{LAYER}.mlp.gate_up"),
}


def read_config(fields: Fields, generation: Fields | None) -> DecoderConfig:
    fields = fields.filled(rms_norm_eps=1e-5)
    num_layers = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    window = fields.integer_or_none("sliding_window", None)
    return read_decoder(_renamed(fields), generation, windows=(window,) * num_layers)


def _renamed(fields: Fields) -> Fields:
    """Early Phi-3 checkpoints call LongRoPE "yarn"."""
    values = dict(fields.values)
    for place in ("rope_parameters", "rope_scaling"):
        described = fields.nested(place).values
        renamed = {key: "longrope" for key in ("rope_type", "type") if described.get(key) == "yarn"}
        if renamed:
            values[place] = described | renamed
    return Fields(fields.path, values)


families.add("phi3")(
    Family(
        read_config=read_config,
        build=build,
        names={name: part for name, part in NAMES.items() if part.index is None} | FUSED,
        skipped=SKIPPED,
        prefixes=PREFIXES,
    )
)
