"""Knows what the native kernels can read and write; raises before they are given anything else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_tensor(name: str, tensor: object, *, dtypes: Sequence[torch.dtype] = DTYPES) -> torch.Tensor:
    """A tensor in the processor's memory.

    Raises:
        TypeError: it is no tensor, or of a type that kernels do not know.
        ValueError: it lies elsewhere or in another layout.
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} is {tensor.dtype}\nConvert it to one of: {known}.")
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or tensor.is_neg():
        raise ValueError(f"{name} is a {tensor.layout} tensor on {tensor.device}\nUse a plain tensor on the CPU.")
    return tensor


def check_shape(name: str, tensor: torch.Tensor, shape: Sequence[int | None]) -> None:
    """``None`` in the shape stands for any size.

    Raises:
        ValueError: another shape.
    """
    wanted = [found if size is None else size for found, size in zip(tensor.shape, shape, strict=False)]
    if tensor.dim() != len(shape) or list(tensor.shape) != wanted:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {list(tensor.shape)}, not [{sizes}]")


def check_rows(name: str, tensor: object, shape: Sequence[int | None], *, written: bool = False) -> torch.Tensor:
    """A tensor [T, ...] whose last dimension is contiguous; if ``written``, no two of its elements share memory.

    Raises:
        TypeError: as ``check_tensor``.
        ValueError: as ``check_tensor`` and ``check_shape``, or strides that kernels do not know.
    """
    found = check_tensor(name, tensor)
    check_shape(name, found, shape)
    if found.shape[-1] > 1 and found.stride(-1) != 1:
        raise ValueError(f"{name} has strides {found.stride()}\nMake its last dimension contiguous.")
    if written and found.numel() and _overlaps(found):
        raise ValueError(f"{name} has strides {found.stride()}, so that its rows overlap\nWrite to one that has room.")
    return found


def are_rows(tensor: object, rows: int, size: int) -> bool:
    """Whether ``check_rows`` finds nothing wrong with a matrix; false where a longer look is needed. It costs less."""
    return (
        type(tensor) is torch.Tensor
        and tensor.dtype in DTYPES
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.shape == (rows, size)
        and tensor.stride(1) == 1
        and not tensor.is_neg()
    )


def check_integers(name: str, array: object, size: int) -> None:
    """A contiguous array int64[size].

    Raises:
        ValueError: it is something else.
    """
    fits = isinstance(array, np.ndarray) and array.dtype == np.int64 and array.shape == (size,)
    if not fits or not array.flags.c_contiguous:  # type: ignore[attr-defined]
        raise ValueError(f"{name} must be {size} numbers of int64 side by side")


def check_indexes(name: str, indexes: np.ndarray, size: int) -> None:
    """Raises:
    ValueError: one of the indexes is negative, or ``size`` or more.
    """
    # Negative indexes are large ones when their sign is taken for a bit like the others.
    if len(indexes) and int(indexes.view(f"u{indexes.itemsize}").max()) >= size:
        raise ValueError(f"{name} has {indexes.min()} to {indexes.max()}, of which there are only {size}")


def check_vector(name: str, tensor: object, size: int, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A contiguous tensor [size].

    Raises:
        TypeError, ValueError: as ``check_rows``.
    """
    found = check_tensor(name, tensor, dtypes=[dtype])
    check_shape(name, found, [size])
    if not found.is_contiguous():
        raise ValueError(f"{name} has strides {found.stride()}\nMake it contiguous.")
    return found


def check_apart(name: str, written: torch.Tensor, **read: torch.Tensor | None) -> None:
    """What is written may share memory with nothing that is still to be read.

    Raises:
        ValueError: it does.
    """
    first, last = _span(written)
    for other, tensor in read.items():
        if tensor is None or not tensor.numel() or not written.numel():
            continue
        start, end = _span(tensor)
        if start < last and first < end:
            raise ValueError(f"{name} and {other} share memory\nWrite to a tensor of its own.")


def check_same_or_apart(name: str, written: torch.Tensor, **read: torch.Tensor | None) -> None:
    """What is written may be a tensor that is read, element for element, or share nothing with it.

    Raises:
        ValueError: it shares some memory, shifted.
    """
    for other, tensor in read.items():
        if tensor is not None and not _same(written, tensor):
            check_apart(name, written, **{other: tensor})


def output(name: str, out: torch.Tensor | None, like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """``out``, checked, or a new tensor of the shape and ``like``'s type."""
    if out is None:
        return torch.empty(tuple(shape), dtype=like.dtype)
    return check_rows(name, out, shape, written=True)


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return (left.data_ptr(), left.dtype, left.shape, left.stride()) == (
        right.data_ptr(),
        right.dtype,
        right.shape,
        right.stride(),
    )


def _overlaps(tensor: torch.Tensor) -> bool:
    needed = 1
    for size, stride in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda pair: pair[1]):
        if size > 1:
            if stride < needed:
                return True
            needed = stride * (size - 1) + needed
    return False


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Addresses from the first element to behind the last."""
    last = sum(stride * (size - 1) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
