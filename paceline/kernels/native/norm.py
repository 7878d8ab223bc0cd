"""Knows how the native normalisations are called; ``paceline.kernels.reference`` has the same in torch."""

from __future__ import annotations

import math

import torch

from paceline.kernels.native import region, structures
from paceline.kernels.native.checks import check_apart, check_rows, check_same_or_apart, check_vector, output
from paceline.kernels.native.structures import Code, Matrix, pointer


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    epsilon: float,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """``x / sqrt(mean(x^2) + epsilon) * weight`` of rows [T, D] (Zhang and Sennrich 2019, arXiv 1910.07467).

    With a ``residual`` [T, D] that becomes ``residual + x``, as its type keeps it, and is what is normalised. All is
    computed in float32 and rounded once; ``weight`` is float32[D], with any "1 +" already in it. ``out`` may be x.

    Raises:
        TypeError, ValueError: tensors that do not fit.
        NativeUnavailableError: there are no native kernels.
    """
    return _norm(Code.RMS_NORM, x, weight, None, epsilon=epsilon, residual=residual, out=out)


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    epsilon: float,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """``(x - mean) / sqrt(variance + epsilon) * weight + bias`` of rows [T, D] (Ba et al. 2016, arXiv 1607.06450).

    The rest is as for ``rms_norm``; ``bias`` is float32[D].

    Raises:
        TypeError, ValueError: tensors that do not fit.
        NativeUnavailableError: there are no native kernels.
    """
    return _norm(Code.LAYER_NORM, x, weight, bias, epsilon=epsilon, residual=residual, out=out)


def _norm(
    code: Code,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    epsilon: float,
    residual: torch.Tensor | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    rows, size = check_rows("x", x, [None, None]).shape
    check_vector("weight", weight, size)
    if bias is not None:
        check_vector("bias", bias, size)
    if not (size and isinstance(epsilon, float) and math.isfinite(epsilon) and epsilon >= 0):
        raise ValueError(f"rows of {size} numbers cannot be normalised with an epsilon of {epsilon!r}")
    y = output("out", out, x, (rows, size))
    if residual is not None:
        check_rows("residual", residual, (rows, size), written=True)
        check_same_or_apart("residual", residual, x=x)
        check_apart("residual", residual, weight=weight, bias=bias)
    check_same_or_apart("out", y, x=x)
    check_apart("out", y, weight=weight, bias=bias, residual=residual)
    matrices = map(Matrix.of, (x, residual, y))
    region.run([(code, structures.NormArgs(*matrices, rows, size, pointer(weight), pointer(bias), epsilon))])
    return y
