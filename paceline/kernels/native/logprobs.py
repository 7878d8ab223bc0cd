"""Knows how log-probabilities are had natively; ``paceline.sampling.logprobs`` defines them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from paceline.kernels.native import region, structures
from paceline.kernels.native.checks import check_indexes, check_integers, check_rows
from paceline.kernels.native.structures import Code, Matrix, address

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of N tokens, each under a row of logits; a row's numbers depend on nothing else, whatever level computes them.

    A log-probability is a logit less ``log_sums``: NaN where the row has a NaN or its best logit is not finite.
    """

    log_sums: npt.NDArray[np.float64]
    """[N] the logarithm of the sum of the row's exponentials."""
    logits: npt.NDArray[np.float32]
    """[N] of the tokens."""
    ranks: Int64
    """[N] 1 + how many tokens have a larger logit; 1 where the row has a NaN."""
    top_tokens: npt.NDArray[np.int32]
    """[N, K] a row's best tokens as far as it wants some, lower ones first; of equals the lowest."""
    top_logits: npt.NDArray[np.float32]
    """[N, K] theirs, and -inf where no more are wanted; where the row has a NaN, zeros of the first tokens."""


def logprobs(logits: torch.Tensor, index: Int64, tokens: Int64, top: Int64) -> Logprobs:
    """Of ``tokens[n]`` under row ``index[n]`` of ``logits`` [R, V], with its ``top[n]`` best tokens, V at most.

    Raises:
        TypeError, ValueError: arguments that do not fit.
        NativeUnavailableError: there are no native kernels.
        MemoryError: there was none for intermediate results.
    """
    check_rows("logits", logits, [None, None])
    count, (rows, size) = len(index), logits.shape
    for name, array, end in (("index", index, rows), ("tokens", tokens, size), ("top", top, size + 1)):
        check_integers(name, array, count)
        check_indexes(name, array, end)
    width = int(top.max(initial=0))
    found = Logprobs(
        np.empty(count),
        np.empty(count, dtype=np.float32),
        np.empty(count, dtype=np.int64),
        np.empty((count, width), dtype=np.int32),
        np.full((count, width), -np.inf, dtype=np.float32),
    )
    arrays = (index, tokens, top, found.log_sums, found.logits, found.ranks, found.top_tokens, found.top_logits)
    struct = structures.LogprobsArgs(Matrix.of(logits), count, size, width, *[address(array) for array in arrays])
    if count:
        # Threads share rows, not a row.
        region.run([(Code.LOGPROBS, struct)], num_threads=1 if count == 1 or count * size <= region.FEW else None)
    return found
