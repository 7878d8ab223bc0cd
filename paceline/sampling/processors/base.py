"""What a logits processor is; knows no particular control.

Shape letters: R rows, D depth of a row's draft path, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from paceline.core.batch import SampleRows
from paceline.core.request import Request
from paceline.sampling.controls import Controls
from paceline.sampling.edits import EditList


class Processor(Protocol):
    """One control: what it keeps per seat, and how it changes a row's scores."""

    def join(self, request: Request) -> bool:
        """Takes in a request, with the output tokens it already has; true if the control acts on it."""
        ...

    def commit(self, seat: int, tokens: list[int]) -> None:
        """Takes in new output tokens of a seat on which the control acts."""
        ...

    def leave(self, seat: int) -> None:
        """Forgets a seat, whether or not the control acted on it."""
        ...

    def apply(self, scores: torch.Tensor, rows: SampleRows) -> None:
        """Changes ``scores`` f[R, V] in place. The control acts on the seat of every row.

        What a row becomes must not depend on the other rows, and must count ``rows.path`` as output tokens.
        """
        ...


@runtime_checkable
class Editing(Protocol):
    """What a processor may offer besides ``apply``: the same change as edits of single scores.

    Rows all of whose processors before temperature offer it are sampled natively without a copy of their logits.
    """

    def edit(self, rows: SampleRows, chosen: Sequence[int], edits: EditList) -> None:
        """Notes what ``apply`` would do to the rows ``chosen`` of ``rows``, bit for bit in float32.

        Edits are made in the order of the processors. A banned score must stay so, whatever comes later.
        """
        ...


class Stateless:
    """Base of the processors whose seats need nothing beyond ``Controls``."""

    def __init__(self, controls: Controls) -> None:
        self.controls = controls

    def commit(self, seat: int, tokens: list[int]) -> None:
        pass

    def leave(self, seat: int) -> None:
        pass


def scatter_index(tokens_of_rows: Sequence[np.ndarray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Index of the elements (row i, each of ``tokens_of_rows[i]``) of a matrix: two int64 vectors."""
    lengths = [len(tokens) for tokens in tokens_of_rows]
    rows = np.repeat(np.arange(len(lengths)), lengths)
    tokens = np.concatenate([np.asarray(tokens, dtype=np.int64) for tokens in tokens_of_rows])
    return torch.from_numpy(rows).to(device), torch.from_numpy(tokens).to(device)


def ban(scores: torch.Tensor, tokens_of_rows: Sequence[np.ndarray]) -> None:
    """Gives -inf to the named tokens of each row of ``scores`` f[R, V]."""
    scores[scatter_index(tokens_of_rows, scores.device)] = -torch.inf
