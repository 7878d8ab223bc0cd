"""What a sampler is; knows none."""

from __future__ import annotations

from typing import Protocol

import torch

from paceline.core.batch import Int64, SampleRows
from paceline.core.outputs import TokenLogprobs
from paceline.kernels.native.sampling import SamplePlan


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

    def plan(self, logits: torch.Tensor, rows: SampleRows, *, path_known: bool = False) -> SamplePlan | None:
        """A native op that does the same when it runs, beside others; None if these rows cannot be had as one.

        The logits [R, V] may be written between now and then. The history of rows is read now, so that there is no
        plan for controls that look at it unless ``path_known``.
        """
        ...
