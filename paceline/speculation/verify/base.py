"""The verifier protocol."""

from __future__ import annotations

from typing import Protocol

import torch

from paceline.core.batch import Drafts, Int32, SampleRows, Verdict
from paceline.core.registry import Registry
from paceline.sampling import Pipeline


class Verifier(Protocol):
    """Decides the tokens of every request from the target's logits. Without a draft, it samples one token."""

    def verify(
        self, logits: torch.Tensor, rows: SampleRows, drafts: Drafts, sample_start: Int32, pipeline: Pipeline
    ) -> Verdict:
        """logits f[R, V]; request b owns rows sample_start[b]..sample_start[b + 1]: root first, then its nodes.

        A request whose root row has no valid token gets no tokens.
        """
        ...


verifiers: Registry[type[Verifier]] = Registry("verifier")
