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
from paceline.kernels.native.structures import Code, HeadsArgs, Matrix, VisibilityArgs, pointer
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
        seen: Sequence[VisibilityArgs] | None = None,
        *,
        angle_rows: Int64 | None = None,
    ) -> None:
        """
        Args:
            model: whose layers these are.
            layers: where they keep K/V.
            positions: [T] of the step's rows, kept up to date by the caller.
            cells: [T] by layer group, kept up to date by the caller; without it, and ``seen``, by ``plan``.
            seen: what rows see, by layer group; likewise.
            angle_rows: [T] rows of the angles that ``use`` is given, kept up to date by the caller.
        """
        self._angle_rows = None if angle_rows is None else torch.from_numpy(angle_rows)
        self._model, self._layers = model, layers
        self._num_pages = [len(store.pools(0)[0]) for store in layers.stores]
        self._seen = [VisibilityArgs() for _ in layers.stores] if seen is None else list(seen)
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
            self.check_cells(group, batch.cells[group])
            self._cells[group][: len(batch.token_ids)] = batch.cells[group]
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

    def use(self, angles: Sequence[Angles | None]) -> None:
        """Has heads turned by these angles, whose rows are the ``angle_rows``; None: by the table of all positions."""
        for rotation, own in zip(self._rotations, angles, strict=True):
            wanted = rotation.table if own is None else Angles(own.cosine, own.sine, self._angle_rows)
            assert wanted is not None
            if own is not None or wanted is not rotation.used:
                self._point_at_angles(rotation, wanted)

    def _point_at_angles(self, rotation: Rotation, angles: Angles) -> None:
        assert self._program is not None
        rotation.used = angles
        for number in rotation.ops:
            heads = self._program.structure(number, HeadsArgs)
            heads.cosine, heads.sine = Matrix.of(angles.cosine), Matrix.of(angles.sine)
            heads.angle_rows = pointer(angles.rows)


@dataclass(frozen=True, slots=True)
class CallAngles:
    """The angles by which a call turns the heads of B requests."""

    of_rotaries: list[Angles | None]
    """None: those of the table of all positions."""
    base: Int64 | None
    """[B] positions less the rows of their angles; None if all are in tables."""


def call_angles(model: CausalLM, first: Int32, end: Int32, longest: Int32) -> CallAngles:
    """Of positions [first, end) int32[B] of requests whose texts may become ``longest`` int32[B] tokens long.

    Raises:
        IndexError: a position that the model does not have.
    """
    rotaries = [rotary for rotary in model.rotaries if isinstance(rotary, Rotary)]
    regimes = model.regimes(longest)
    varies = [rotary.table is None or (regimes is not None and rotary.depends_on_length) for rotary in rotaries]
    for rotary, own in zip(rotaries, varies, strict=True):
        if not own and rotary.table is not None:
            check_below(end[end > first] - 1, len(rotary.table), "position")
    if not any(varies):
        return CallAngles([None] * len(rotaries), None)
    counts = end - first
    starts = np.cumsum(counts) - counts
    owner = np.repeat(np.arange(len(counts)), counts)
    positions = torch.from_numpy((np.arange(len(owner)) - starts[owner] + first[owner]).astype(np.int64))
    of_rows = None if regimes is None else regimes[owner]
    found = [_angles(rotary, positions, of_rows) if own else None for rotary, own in zip(rotaries, varies, strict=True)]
    return CallAngles(found, (first - starts).astype(np.int64))


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
