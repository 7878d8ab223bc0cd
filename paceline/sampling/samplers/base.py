"""What a sampler is; knows none."""

from __future__ import annotations

from typing import Protocol

import torch

from paceline.core.batch import Int64, SampleRows
from paceline.kernels.native.sampling import SamplePlan


class Sampler(Protocol):
    """Chooses tokens under the controls of seats. All samplers that take some logits choose the same tokens."""

    def sample(self, logits: torch.Tensor, rows: SampleRows) -> Int64:
        """The token of each row of ``logits`` [R, V], int64[R]: the first of the best sums of score and target noise.

        Greedy rows take the first of the best scores. A row is NAN if its logits have a NaN, and BANNED if its controls
        leave no token. Other rows of the call change no token.
        """
        ...

    def plan(self, logits: torch.Tensor, rows: SampleRows) -> SamplePlan | None:
        """A native op that does the same when it runs, beside others; None if these rows cannot be had as one.

        The logits [R, V] may be written between now and then, the history of the rows is read now.
        """
        ...
