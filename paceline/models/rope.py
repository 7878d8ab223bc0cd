"""Knows how config.json of both generations describes rotary embeddings and attention windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paceline.core.errors import CheckpointError
from paceline.layers.rotary_kinds import RotaryConfig, RotaryKind, rotary_kinds
from paceline.models.config import MAX_POSITIONS, Fields

ORIGINAL = "original_max_position_embeddings"
SLIDING, FULL = "sliding_attention", "full_attention"
"""How Transformers 5 calls the types of layers."""


def rotary_config(fields: Fields, *, head_dim: int) -> RotaryConfig:
    """The one rotary embedding of all layers.

    Reads ``rope_parameters``, or ``rope_scaling`` as files before Transformers 5 have it; what neither has, from
    beside them.
    """
    key = "rope_parameters" if "rope_parameters" in fields.values else "rope_scaling"
    described = fields.nested(key)
    if any(isinstance(value, dict) for value in described.values.values()):
        raise fields.error(key, "one description for all layers")
    return _rotary(described, fields, head_dim=head_dim)


def rotary_by_layer_type(
    fields: Fields, *, head_dim: int, theta: float, local_theta: float
) -> tuple[RotaryConfig, RotaryConfig]:
    """The rotary embeddings of layers without and with a window, with the bases they have where none is named.

    Reads ``rope_parameters`` by layer type; or, in files before Transformers 5, ``rope_theta`` and ``rope_scaling``
    of layers without a window and ``rope_local_base_freq`` of the others.
    """
    if "rope_parameters" in fields.values:
        by_type = fields.nested("rope_parameters")
        full, sliding = by_type.nested(FULL), by_type.nested(SLIDING)
    else:
        full = fields.nested("rope_scaling").filled(rope_theta=fields.values.get("rope_theta"))
        sliding = Fields(fields.path, {"rope_theta": fields.values.get("rope_local_base_freq")})
    described = full.filled(rope_theta=theta), sliding.filled(rope_theta=local_theta)
    of_full, of_sliding = (_rotary(rope, fields, head_dim=head_dim) for rope in described)
    return of_full, of_sliding


def _rotary(rope: Fields, fields: Fields, *, head_dim: int) -> RotaryConfig:
    max_positions = fields.integer("max_position_embeddings", 2048, high=MAX_POSITIONS)
    beside = ("rope_theta", "partial_rotary_factor")
    rope = rope.filled(**{name: fields.values.get(name) for name in beside}, **{ORIGINAL: max_positions})
    if ORIGINAL in fields.values:  # then it counts, wherever else the same is said (Phi-3)
        rope.values[ORIGINAL] = fields.values[ORIGINAL]
    kind = rope.values.get("rope_type", rope.values.get("type", "default"))
    if not isinstance(kind, str) or kind not in rotary_kinds:
        raise CheckpointError(
            f"{fields.path}: rotary kind {kind!r} is not supported\nSupported: {', '.join(sorted(rotary_kinds))}."
        )
    rotary_dim = int(head_dim * rope.number("partial_rotary_factor", 1.0))
    if rotary_dim % 2 or not 2 <= rotary_dim <= head_dim:
        raise CheckpointError(
            f"{fields.path}: a rotary embedding must turn an even part of head_dim, got {rotary_dim} of {head_dim}\n"
            "Correct head_dim or partial_rotary_factor."
        )
    config = RotaryConfig(
        rotary_dim=rotary_dim,
        max_position_embeddings=max_positions,
        theta=rope.number("rope_theta", 10000.0),
        kind=kind,
        scaling=_scaling(rope, rotary_kinds[kind], max_positions),
        lists={name: rope.numbers(name, rotary_dim // 2) for name in rotary_kinds[kind].lists},
    )
    if config.num_positions > MAX_POSITIONS:
        raise rope.error("factor", f"at most {MAX_POSITIONS // max_positions}")
    return config


def _scaling(rope: Fields, kind: RotaryKind, max_positions: int) -> dict[str, float]:
    if kind.implies_factor:
        rope = rope.filled(factor=max_positions / rope.number(ORIGINAL))
    given = [name for name in kind.allows if rope.values.get(name)]  # 0 and null both mean absent
    numbers = {name: rope.number(name) for name in (*kind.needs, *given)}
    return numbers | {name: float(rope.flag(name, default)) for name, default in kind.flags}


def windows(
    fields: Fields, *, window: int | None, num_layers: int, slides: Callable[[int], bool] = lambda _: True
) -> tuple[int | None, ...]:
    """Each layer's window: as ``layer_types`` says, or in files without it as the family's rule ``slides`` does."""
    types: Any = fields.values.get("layer_types", [SLIDING if slides(layer) else FULL for layer in range(num_layers)])
    if not isinstance(types, list) or len(types) != num_layers or not all(kind in (SLIDING, FULL) for kind in types):
        raise fields.error("layer_types", f"{num_layers} times {SLIDING} or {FULL}")
    return tuple(window if kind == SLIDING else None for kind in types)
