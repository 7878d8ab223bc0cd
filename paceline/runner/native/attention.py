"""Knows the ops between a layer's qkv product and its output product, and what each step changes in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from paceline.attention import LayerMap
from paceline.core.batch import Batch, Int32, Int64
from paceline.kernels.native import attention as native_attention
from paceline.kernels.native import heads as native_heads
from paceline.kernels.native.heads import Angles, HeadNorms
from paceline.kernels.native.program import Program
from paceline.kernels.native.structures import Code, Heads, Matrix, Visibility, pointer
from paceline.kernels.native.visibility import point_at
from paceline.layers.norm import HeadNorm
from paceline.layers.rotary import Rotary
from paceline.models import CausalLM
from paceline.runner.native.recorder import Recorder
from paceline.runner.native.sizes import check_heads


@dataclass(slots=True)
class Rotation:
    """One rotary embedding, and the ops that turn heads by it."""

    rotary: Rotary
    table: Angles | None
    """Of all positions, if they are kept."""
    ops: list[int]
    used: Angles | None
    """What the ops point to."""


class RecordedAttention:
    """All layers' attention over one pool; what a step's rows see lies in one struct per layer group."""

    def __init__(
        self,
        model: CausalLM,
        layers: LayerMap,
        positions: Int64,
        cells: Sequence[Int64] | None = None,
        seen: Sequence[Visibility] | None = None,
    ) -> None:
        """
        Args:
            positions: [T] of the step's rows, kept up to date by the caller.
            cells: [T] by layer group, kept up to date by the caller; without it, and ``seen``, by ``plan``.
        """
        self._model, self._layers = model, layers
        self._num_pages = [len(store.pools(0)[0]) for store in layers.stores]
        self._seen = [Visibility() for _ in layers.stores] if seen is None else list(seen)
        self._cells = [np.zeros_like(positions) for _ in layers.stores] if cells is None else list(cells)
        self._held: tuple[object, ...] = ()
        self._rotations = [_rotation(rotary, torch.from_numpy(positions)) for rotary in model.rotaries]
        self._program: Program | None = None

    def record(self, recorder: Recorder, layer: int, qkv: torch.Tensor, head_norm: HeadNorm | None) -> torch.Tensor:
        """qkv [T, (H + 2 KV) * dim] -> attended heads [T, H * dim], which take the place of the query heads."""
        spec, group = self._layers.specs[layer], self._layers.group_of[layer]
        pools = self._layers.stores[group].pools(self._layers.index_in_group[layer])
        cells, norms = torch.from_numpy(self._cells[group]), _head_norms(head_norm)
        queries = qkv[:, : spec.num_heads * spec.head_dim]
        rotation = self._rotations[self._model.rotary_of[layer]] if self._rotations else None
        angles = None if rotation is None else rotation.used
        rotary_dim = 0 if angles is None else angles.cosine.shape[1]
        check_heads(qkv, pools[0], num_heads=spec.num_heads, head_dim=spec.head_dim, rotary_dim=rotary_dim)
        heads = native_heads.arguments(qkv, queries, pools, cells, angles=angles, norms=norms)
        number = recorder.add(Code.HEADS, heads, qkv, pools, cells, angles, norms)
        if rotation is not None:
            rotation.ops.append(number)
        seen = self._seen[group]
        recorder.add(
            Code.ATTENTION,
            native_attention.arguments(queries, queries, pools, seen, scale=spec.scale, softcap=spec.softcap),
            seen,
            count="",
        )
        return queries

    def bind(self, program: Program) -> None:
        """The program whose structs each step changes."""
        self._program = program

    def plan(self, batch: Batch) -> None:
        """Points the ops at what this step's rows see, where they are written and how they are rotated.

        Raises:
            IndexError: a page or a cell that the pools do not have.
        """
        for group, (seen, num_pages) in enumerate(zip(self._seen, self._num_pages, strict=True)):
            check_below(batch.page_table[group], num_pages, "page")
            self.check_cells(group, batch.slots[group])
            self._cells[group][: len(batch.token_ids)] = batch.slots[group]
            point_at(
                seen,
                row_start=batch.row_start,
                visible=batch.visible,
                first_visible=batch.first_visible[group],
                context=batch.context,
                tree_bits=batch.tree_bits,
                page_table=batch.page_table[group],
            )
        self._held = (batch,)  # the structs point into its arrays
        self.rotate(batch.positions, batch.longest, batch.row_request)

    @property
    def angles_are_fixed(self) -> bool:
        """Whether a position alone tells by which angles heads are turned, and all angles are known."""
        return all(one.table is not None and not one.rotary.depends_on_length for one in self._rotations)

    def check_cells(self, group: int, cells: Int64) -> None:
        """
        Raises:
            IndexError: a cell that the pool does not have.
        """
        check_below(cells, self._num_pages[group] * self._layers.stores[group].page_size, "cell")

    def rotate(self, positions: Int32 | Int64, longest: Int32, row_request: Int32) -> None:
        """Has heads turned by angles of these positions [T]; ``longest`` int32[B] as in ``Batch``.

        Raises:
            IndexError: a position that the model does not have.
        """
        if not self._rotations:
            return
        regimes = self._model.regimes(longest)
        for rotation in self._rotations:
            angles = rotation.table
            if angles is None or (regimes is not None and rotation.rotary.depends_on_length):
                of_rows = None if regimes is None else regimes[row_request]
                angles = _angles(rotation.rotary, torch.from_numpy(positions), of_rows)
            else:
                check_below(positions, len(angles.cosine), "position")
            if angles is not rotation.used:
                self._point_at_angles(rotation, angles)

    def _point_at_angles(self, rotation: Rotation, angles: Angles) -> None:
        assert self._program is not None
        rotation.used = angles
        for number in rotation.ops:
            heads = self._program.structure(number, Heads)
            heads.cosine, heads.sine = Matrix.of(angles.cosine), Matrix.of(angles.sine)
            heads.angle_rows = pointer(angles.rows)


def _rotation(rotary: torch.nn.Module, positions: torch.Tensor) -> Rotation:
    assert isinstance(rotary, Rotary)
    if rotary.table is None:
        first = _angles(rotary, positions, None)  # zeros, for the size alone
        return Rotation(rotary, None, [], first)
    cosine, sine = rotary.table.flatten(2).unbind(1)
    table = Angles(cosine, sine, positions)
    return Rotation(rotary, table, [], table)


def _angles(rotary: Rotary, positions: torch.Tensor, regimes: Int64 | None) -> Angles:
    cosine, sine = rotary(positions, regimes)
    return Angles(cosine.flatten(1), sine.flatten(1))


def _head_norms(norm: HeadNorm | None) -> HeadNorms | None:
    if norm is None:
        return None
    weight = norm.weight.detach().float()  # a row per head; those of one kind are equal
    return HeadNorms(weight[0].contiguous(), weight[norm.counts[0]].contiguous(), norm.epsilon)


def check_below(numbers: np.ndarray, limit: int, what: str) -> None:
    """
    Raises:
        IndexError: a number that is negative, or not below ``limit``.
    """
    # A negative number is a large one when its sign is taken for a bit like the others.
    if numbers.size and int(numbers.view(f"u{numbers.itemsize}").max()) >= limit:
        raise IndexError(f"{what} {int(numbers.max())} or {int(numbers.min())} is outside 0..{limit - 1}")
