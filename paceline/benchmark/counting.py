"""Knows how many bytes and operations each kernel call takes: of torch from its tensors, of native ops from structs.

Nothing is derived from a model's shape: what a pass really touches is counted, call by call. A multiplication and an
addition are two operations; additions of a bias, norms and activations count no operations, only bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from paceline.benchmark.native_counting import count_operations
from paceline.benchmark.traffic import ATTENTION, EMBEDDING, LINEAR, OTHER, Traffic
from paceline.kernels.native import region

Arguments = tuple[Any, ...]
Count = Callable[[Arguments, Any], tuple[int, int]]
"""(positional arguments, result) -> (bytes, operations)"""

kernel_counts: dict[str, tuple[str, Count]] = {}
"""By operator name: its kind and how its calls are counted; a kernel of one's own is one more entry."""


def counts(kind: str, *names: str) -> Callable[[Count], Count]:
    """Decorator: this is how calls of the operators ``names`` are counted."""

    def register(count: Count) -> Count:
        kernel_counts.update(dict.fromkeys(names, (kind, count)))
        return count

    return register


def touched(value: Any) -> int:
    """Bytes of every tensor in ``value`` (nested lists too); an expanded dimension is there once."""
    return sum(_cells(tensor) * tensor.element_size() for tensor in _tensors(value) if tensor.layout == torch.strided)


def _cells(tensor: torch.Tensor) -> int:
    cells = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        cells *= size if stride else min(size, 1)
    return cells


def _tensors(value: Any) -> Iterable[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


@counts(
    LINEAR,
    "aten::linear",
    "aten::mm",
    "aten::_int_mm",
    "aten::_weight_int8pack_mm",
    "aten::_weight_int4pack_mm_for_cpu",
)
def _matrix_product(arguments: Arguments, result: Any) -> tuple[int, int]:
    return touched(arguments) + touched(result), 2 * result.numel() * arguments[0].shape[-1]


@counts(LINEAR, "aten::addmm")
def _matrix_product_with_bias(arguments: Arguments, result: Any) -> tuple[int, int]:
    return touched(arguments) + touched(result), 2 * result.numel() * arguments[1].shape[-1]


@counts(ATTENTION, "aten::bmm")
def _batched_product(arguments: Arguments, result: Any) -> tuple[int, int]:
    return _matrix_product(arguments, result)


@counts(
    ATTENTION,
    "aten::scaled_dot_product_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
)
def _attention(arguments: Arguments, result: Any) -> tuple[int, int]:
    """Scores and weighted sums; masked cells are computed like others and count."""
    q, k, v = arguments[:3]
    out = result[0] if isinstance(result, tuple | list) else result
    flops = 2 * (q.numel() // q.shape[-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])
    return touched(arguments) + touched(out), flops


@counts(EMBEDDING, "aten::embedding")
def _lookup(arguments: Arguments, result: Any) -> tuple[int, int]:
    """The rows that were looked up, not the table."""
    return touched(arguments[1]) + 2 * touched(result), 0


@counts(OTHER, "aten::index", "aten::index_select", "aten::gather", "aten::take_along_dim")
def _gathered(arguments: Arguments, result: Any) -> tuple[int, int]:
    return touched(arguments[1:]) + 2 * touched(result), 0


@counts(OTHER, "aten::index_put_", "aten::index_put", "aten::_index_put_impl_")
def _scattered(arguments: Arguments, _result: Any) -> tuple[int, int]:
    return touched(arguments[1]) + 2 * touched(arguments[2]), 0


def _anything(function: Any, arguments: Arguments, options: Mapping[str, Any], result: Any) -> int:
    """Bytes of what goes in and what comes out; a view or uninitialised memory moves nothing."""
    returned = function._schema.returns
    views = bool(returned) and all(one.alias_info is not None and not one.alias_info.is_write for one in returned)
    if views or function._schema.name.startswith(("aten::empty", "aten::new_empty")):
        return 0
    return touched(arguments) + touched(list(options.values())) + touched(result)


class KernelCounter(TorchDispatchMode):
    """While it is entered, counts every call of torch and of the native kernels by this thread, by phase and kind."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = ""
        """Under which name calls are counted from now on."""
        self.by_phase: dict[str, dict[str, Traffic]] = {}
        self._thread: int | None = None

    def __enter__(self) -> Any:
        self._thread = threading.get_ident()
        region.observers.append(self._count_native)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        region.observers.remove(self._count_native)
        super().__exit__(*error)

    def _count_native(self, operations: Sequence[tuple[int, int]]) -> None:
        if threading.get_ident() != self._thread:
            return
        for kind, one in count_operations(operations).items():
            self._of(kind).add(one.num_bytes, one.num_flops, one.num_calls)

    def _of(self, kind: str) -> Traffic:
        return self.by_phase.setdefault(self.phase, {}).setdefault(kind, Traffic())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Arguments = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        name = func._schema.name
        if name not in kernel_counts and func._can_decompose():
            with self:  # made of other operators, which are counted in its place
                result = func.decompose(*args, **options)
            if result is not NotImplemented:
                return result
        result = func(*args, **options)
        kind, num_bytes, num_flops = OTHER, 0, 0
        if name in kernel_counts:
            kind, count = kernel_counts[name]
            num_bytes, num_flops = count(args, result)
        else:
            num_bytes = _anything(func, args, options, result)
        self._of(kind).add(num_bytes, num_flops)
        return result

    def report(self) -> dict[str, dict[str, dict[str, int]]]:
        """phase -> kind -> numbers, as plain JSON."""
        return {phase: {kind: asdict(one) for kind, one in kinds.items()} for phase, kinds in self.by_phase.items()}
