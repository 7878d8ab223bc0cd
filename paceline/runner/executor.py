"""How a model's passes are computed: a protocol, and the executor that calls the torch modules one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from paceline.attention import LayerMap, attention_backends
from paceline.core.batch import Batch, Behind, Int64, SampleRows
from paceline.kernels.native.sampling import NativeSampling
from paceline.models import CausalLM

if TYPE_CHECKING:
    from paceline.runner.native.rounds import Recordable


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass over T rows gives; valid until the next one."""

    logits: torch.Tensor
    """f[R, V] of the batch's ``logit_rows``."""
    hidden: torch.Tensor
    """f[T, D] after the final norm."""
    features: torch.Tensor | None
    """f[T, len(taps) * D]"""


class Executor(Protocol):
    """Computes the passes of one model; all its layers write K/V to the pool and attend through it."""

    def run(self, batch: Batch, taps: tuple[int, ...]) -> Pass: ...

    def chain(self, batch: Batch, rows: SampleRows, sampling: NativeSampling, behind: Behind | None) -> Int64 | None:
        """int64[1 + N, R]: samples the ``rows`` of a pass, feeds the tokens to the N passes ``behind``, samples those.

        If there are any behind, every request is sampled once, and there are no edits. A row that cannot be sampled is
        negative, and what follows it is nobody's. There may be fewer passes, if all rows end before. None, and nothing
        was computed, if passes must be called one by one.
        """
        ...

    def forget(self) -> None:
        """Keeps nothing of passes before: one was cut short while it was planned, and may be half planned."""
        ...

    @property
    def recordable(self) -> Recordable | None:
        """What native ops may compute in its place, beside others; None if they may not."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """f[N, D] after the final norm -> f[N, V]."""
        ...


class TorchExecutor:
    """The modules of the model, called one by one; any device, any type."""

    def __init__(self, model: CausalLM, layers: LayerMap, *, attention_backend: str, device: torch.device) -> None:
        self.model, self.device = model, device
        self.backend = attention_backends[attention_backend](layers, device)

    def run(self, batch: Batch, taps: tuple[int, ...]) -> Pass:
        self.backend.plan(batch)
        regimes = self.model.regimes(batch.longest)
        hidden, features = self.model(
            torch.from_numpy(batch.token_ids).to(self.device),
            torch.from_numpy(batch.positions).to(self.device),
            self.backend.attend,
            taps,
            None if regimes is None else regimes[batch.row_request],
        )
        rows = torch.from_numpy(batch.logit_rows).to(self.device)
        return Pass(self.logits(hidden if len(rows) == len(hidden) else hidden[rows]), hidden, features)

    def chain(self, batch: Batch, rows: SampleRows, sampling: NativeSampling, behind: Behind | None) -> None:  # noqa: ARG002
        return None

    def forget(self) -> None:
        pass

    @property
    def recordable(self) -> None:
        return None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.model.logits(hidden)
