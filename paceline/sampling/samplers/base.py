"""What a sampler is; knows none."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from paceline.core.batch import Int32, Int64, SampleRows
from paceline.core.outputs import TokenLogprobs
from paceline.kernels.native.sampling import NativeSampling


class Sampler(Protocol):
    """Chooses tokens under the controls of seats. All samplers that take some logits choose the same tokens."""

    def sample(self, logits: torch.Tensor, rows: SampleRows) -> Int64:
        """The token of each row of ``logits`` [R, V], int64[R]: the first of the best sums of score and target noise.

        Greedy rows take the first of the best scores. A row is NAN if its logits have a NaN, and BANNED if its controls
        leave no token. Other rows of the call change no token.
        """
        ...

    def logprobs(self, logits: torch.Tensor, rows: list[int], tokens: list[int], top: list[int]) -> list[TokenLogprobs]:
        """Of ``tokens[i]``, at least one, under row ``rows[i]`` of ``logits`` [R, V], with the ``top[i]`` likeliest."""
        ...

    def best(self, logits: torch.Tensor, count: int) -> tuple[Int32, npt.NDArray[np.float64]]:
        """The ``count`` likeliest tokens of rows of ``logits`` [R, V] and their log-probabilities, [R, count] each, in
        the order of the tokens' numbers; NaN in a row with a NaN."""
        ...

    def edits(self, seats: Int32) -> bool:
        """Whether a call that ``native`` gives for rows of these seats has edits, which are each row's own."""
        ...

    def can_plan(self, rows: SampleRows, *, at_once: bool) -> bool:
        """Whether ``native`` would give a call."""
        ...

    def native(self, rows: SampleRows, *, at_once: bool) -> NativeSampling | None:
        """The native call that samples ``rows`` just so, beside other ops.

        Unless ``at_once``, it must also do for rows behind them, whose histories nobody knows yet. None if there is no
        such call.
        """
        ...
