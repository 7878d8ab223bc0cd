"""Knows which of a model's linears are quantised, and how: from config, tensors and options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paceline.core.errors import CheckpointError, ConfigError
from paceline.layers.linear import Linear
from paceline.models.base import LoadedModule
from paceline.models.checkpoint import TensorEntry
from paceline.models.compressed import PackedLayout
from paceline.models.family import TensorNames
from paceline.models.placing import MISMATCH, Place, names_of, places
from paceline.models.quantization import HEAD, UNQUANTISED, Quantization, QuantizationPlan, linears, schemes
from paceline.models.quantization_config import StoredQuantization

INTEGER_TENSORS = ("weight_packed", "weight")


def choose(stored: StoredQuantization | None, wanted: Quantization | None) -> None:
    """Whether a checkpoint can be loaded as the options want it.

    Raises:
        ConfigError: it is quantised already, to something else.
    """
    if stored is None or wanted is None:
        return
    found = {layout.kind for layout in stored.layouts}
    if found != {schemes[wanted.scheme].kind}:
        raise ConfigError(
            f"quantization is {wanted.scheme!r}, the checkpoint is quantised already, to {' and '.join(sorted(found))}"
            "\nLeave quantization out, or give the unquantised model."
        )


def plan_matrices(
    model: LoadedModule,
    family: TensorNames,
    entries: Sequence[TensorEntry],
    stored: StoredQuantization | None,
    wanted: Quantization | None,
) -> QuantizationPlan:
    """Each linear's layout.

    Args:
        model: may have no memory.

    Raises:
        CheckpointError: the tensors contradict the config, or parts of one linear are quantised differently.
        ConfigError: the options cannot work for this model.
    """
    choose(stored, wanted)
    if stored is not None:
        read = _read(model, family, entries, stored)
        head = Quantization(stored.head) if stored.head and HEAD not in read else None
        return QuantizationPlan(read, {HEAD: head.layout(HEAD, linears(model)[HEAD])} if head else {})
    if wanted is None:
        return UNQUANTISED
    return QuantizationPlan({}, {name: wanted.layout(name, linear) for name, linear in linears(model).items()})


def expected_layouts(
    model: LoadedModule, stored: StoredQuantization | None, wanted: Quantization | None
) -> Mapping[str, PackedLayout]:
    """The same as far as the configs tell: every linear but the head is taken to be quantised."""
    choose(stored, wanted)
    if stored is None:
        return {} if wanted is None else {name: wanted.layout(name, one) for name, one in linears(model).items()}
    layouts = {name: stored.layouts[0] for name in linears(model) if name != HEAD}
    return layouts | ({HEAD: Quantization(stored.head).layout(HEAD, linears(model)[HEAD])} if stored.head else {})


def _read(
    model: LoadedModule, family: TensorNames, entries: Sequence[TensorEntry], stored: StoredQuantization
) -> dict[str, PackedLayout]:
    renamed = {name: entry for entry in entries for name in names_of(entry, family)}
    by_name = renamed | {entry.name: entry for entry in entries}
    found: dict[str, dict[str, PackedLayout | None]] = {}
    for place in places(model, family):
        if isinstance(place.module, Linear):
            found.setdefault(place.ours, {})[place.theirs] = _layout(place, by_name, stored.layouts)
    for parts in found.values():
        if len(set(parts.values())) > 1:
            names = " and ".join(f"{theirs!r}" for theirs in list(parts)[:3])
            raise CheckpointError(
                f"{entries[0].file.parent}: {names} are quantised differently, and computed together\n"
                "Give a checkpoint in which all or none of them are quantised, and alike."
            )
    read = {ours: layout for ours, parts in found.items() for layout in parts.values() if layout is not None}
    if not read:
        raise CheckpointError(
            f"{entries[0].file.parent}: config.json says that the model is quantised, no tensor of it is\n{MISMATCH}"
        )
    return read


def _layout(place: Place, by_name: Mapping[str, TensorEntry], layouts: Sequence[PackedLayout]) -> PackedLayout | None:
    """How the checkpoint stores the matrix of this name; None: as it was."""
    integers = next(
        (by_name[name] for tensor in INTEGER_TENSORS if (name := f"{place.theirs}.{tensor}") in by_name), None
    )
    if integers is None or integers.dtype not in ("I8", "I32"):
        return None
    alike = [layout for layout in layouts if layout.integers == integers.name.rpartition(".")[2]]
    if not alike:
        raise CheckpointError(f"{integers.file}: tensor {integers.name!r} is not as config.json says\n{MISMATCH}")
    scale = by_name.get(f"{place.theirs}.weight_scale")
    inputs = place.module.weight.shape[1] if isinstance(place.module, Linear) else 0
    layout = next((one for one in alike if _fits(one, inputs, integers, scale)), alike[0])
    _check_divides(place, layout, inputs, integers)
    return layout


def _fits(layout: PackedLayout, inputs: int, integers: TensorEntry, scale: TensorEntry | None) -> bool:
    """Whether tensors of these shapes can be of the layout; what cannot is told tensor by tensor."""
    columns = () if scale is None else scale.shape[1:] or (1,)
    return integers.shape[1:] == (layout.integer_columns(inputs),) and columns == (layout.scale_columns(inputs),)


def _check_divides(place: Place, layout: PackedLayout, inputs: int, entry: TensorEntry) -> None:
    if layout.group_size and inputs % layout.group_size:
        raise CheckpointError(
            f"{entry.file}: {place.theirs!r} has {inputs} inputs, which groups of {layout.group_size} do not divide\n"
            f"{MISMATCH}"
        )
