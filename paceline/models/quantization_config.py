"""Knows config.json's ``quantization_config`` as compressed-tensors writes it; nothing of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paceline.core.errors import CheckpointError
from paceline.models.compressed import BITS, PackedLayout
from paceline.models.config import Fields
from paceline.models.quantization import schemes

KEY = "quantization_config"
METHOD = "compressed-tensors"
OURS = "paceline"
"""What the format has no word for: by which scheme Paceline quantises the output matrix when it reads the file."""
WORDS, BYTES, MIXED = "pack-quantized", "int-quantized", "mixed-precision"
KINDS = {bits: kind for kind, bits in BITS.items()}
DENSE = "dense"
UNSUPPORTED: Mapping[str, Callable[[Any], bool]] = {
    "kv_cache_scheme": lambda _value: False,
    "sparsity_config": lambda value: isinstance(value, dict) and value.get("format") == DENSE,
    "transform_config": lambda value: isinstance(value, dict) and not value.get("config_groups"),
}
"""What must be absent, null, empty or such that it changes no stored tensor: zeros of a dense matrix are stored."""


@dataclass(frozen=True, slots=True)
class StoredQuantization:
    """What a checkpoint says of how its matrices are quantised."""

    layouts: Sequence[PackedLayout]
    """Those that its matrices may have."""
    head: str | None
    """The scheme by which the output matrix, stored as it was, is quantised while it is read."""


def read_quantization(fields: Fields) -> StoredQuantization | None:
    """Reads the ``quantization_config`` of config.json; None where there is none, or only of a
    model that was pruned and is stored dense.

    Raises:
        CheckpointError: a method, format or scheme that is not supported, or a broken config.
    """
    if not fields.values.get(KEY):
        return None
    whole = fields.nested(KEY)
    method = whole.values.get("quant_method")
    if method != METHOD:
        raise CheckpointError(
            f"{fields.path}: quantised by {str(method)[:40]!r}, and only {METHOD} can be read\n"
            'Give the unquantised model, and quantization="int8" or "int4" (or `paceline quantize` it once).'
        )
    for key, changes_nothing in UNSUPPORTED.items():
        if whole.values.get(key) and not changes_nothing(whole.values[key]):
            raise _refused(whole, key, "is not supported")
    groups = whole.nested("config_groups")
    said = whole.values.get("format", DENSE if "sparsity_config" in whole.values else None)
    if not groups.values and said == DENSE:
        return None
    if not groups.values:
        raise whole.error("config_groups", "an object that holds a scheme")
    layouts = [_layout(groups.nested(name), whole) for name in groups.values]
    return StoredQuantization(list(dict.fromkeys(layouts)), _head(whole))


def _head(whole: Fields) -> str | None:
    scheme = whole.nested(OURS).values.get("head")
    if scheme is not None and (not isinstance(scheme, str) or scheme not in schemes):
        raise _refused(whole, OURS, f"names an unknown scheme for the head, {str(scheme)[:40]!r}")
    return scheme


def _layout(group: Fields, whole: Fields) -> PackedLayout:
    weights = group.nested("weights")
    if group.values.get("output_activations"):
        raise _refused(group, "output_activations", "is not supported")
    _check_activations(group)
    bits, kind = weights.integer("num_bits", 8), weights.values.get("type", "int")
    if kind != "int" or bits not in KINDS:
        raise _refused(group, "weights", f"are {bits}-bit {str(kind)[:20]}, not int of 4 or 8 bits")
    if not weights.flag("symmetric", True):
        raise _refused(group, "weights", "are asymmetric (they have zero points)")
    if weights.values.get("actorder", False) not in (False, "weight", "static"):
        raise _refused(group, "weights", "are grouped in the order of activations (actorder, g_idx)")
    if weights.values.get("dynamic", False) is not False:
        raise _refused(group, "weights", "have no stored scales (dynamic)")
    form = group.values.get("format", whole.values.get("format"))
    if form not in (WORDS, BYTES):
        raise _refused(whole, "format", f"is {str(form)[:40]!r}, not {BYTES} or {WORDS}")
    shares, size = _groups(weights)
    layout = PackedLayout(KINDS[bits], size, in_words=form == WORDS, shares_scale=shares)
    if not layout.known:
        able = "multiples of 32" if bits == 4 else "none for 8 bits: a scale per channel or per tensor"
        raise _refused(group, "weights", f"have groups of {size} inputs (supported: {able})")
    return layout


def _groups(weights: Fields) -> tuple[bool, int]:
    """Whether the matrix has one scale, and how many inputs share one; 0 for all of an output's."""
    size = weights.values.get("group_size")
    named = weights.values.get("strategy")
    strategy = named or ("tensor" if size is None else "channel" if size == -1 else "group")
    if strategy not in ("tensor", "channel", "group"):
        raise _refused(weights, "strategy", f"is {str(strategy)[:40]!r}, not tensor, channel or group")
    return strategy == "tensor", weights.integer("group_size") if strategy == "group" else 0


def _check_activations(group: Fields) -> None:
    """Rows are quantised to 8 bits when they come, each with one scale; what wants no such thing gets it too."""
    inputs = group.nested("input_activations").values
    wanted = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
    if not inputs:
        return
    for key, value in wanted.items():
        if inputs.get(key, value) != value:
            found = f"have {key} {str(inputs[key])[:40]!r}, supported is {value!r}"
            raise _refused(group, "input_activations", found)
    if "dynamic" not in inputs:
        raise _refused(group, "input_activations", "are static, supported are dynamic ones")


def _refused(fields: Fields, key: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"{fields.path}: {KEY}'s {key} {why}\n"
        'Give the unquantised model, and quantization="int8" or "int4" (or `paceline quantize` it once).'
    )


def write_quantization(layout: PackedLayout, *, ignored: Sequence[str], head: str) -> dict[str, Any]:
    """The ``quantization_config`` of a checkpoint whose matrices, all but the ``ignored``, have this layout."""
    strategy = "group" if layout.group_size else "channel"
    weights = _arguments(BITS[layout.kind], strategy, group_size=layout.group_size or None, dynamic=False)
    # The kernels quantise rows for int4 too. Few other programs have kernels for that, and all that read such files
    # have them for rows as they are, which only come closer to the unquantised model.
    inputs = None if layout.kind == "int4" else _arguments(8, "token", group_size=None, dynamic=True)
    form = WORDS if layout.packs else BYTES
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    return {
        "quant_method": METHOD,
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": list(ignored),
        "kv_cache_scheme": None,
        OURS: {"head": head},
    }


def _arguments(bits: int, strategy: str, *, group_size: int | None, dynamic: bool) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": strategy,
        "group_size": group_size,
        "dynamic": dynamic,
        "observer": None if dynamic else "minmax",
        "actorder": None,
    }
