"""One model's passes over up to so many rows, recorded: a program that a step replays."""

from __future__ import annotations

import torch

from paceline.attention import LayerMap
from paceline.core.batch import Batch
from paceline.models import CausalLM
from paceline.runner.executor import Pass
from paceline.runner.native.recorded_pass import RecordedPass
from paceline.runner.native.recorder import LOGITS, TOKENS, Recorder


class Recording:
    """The ops of all layers, from token ids to logits, in one program."""

    def __init__(
        self,
        model: CausalLM,
        layers: LayerMap,
        taps: tuple[int, ...],
        num_layers: int | None,
        capacity: dict[str, int],
    ) -> None:
        """``num_layers``: of the first layers; None: all."""
        self.capacity = capacity
        recorder = Recorder(capacity)
        self._beside = torch.zeros(capacity[TOKENS], model.input_size)
        self._pass = RecordedPass(model, layers, recorder, taps, beside=self._beside, num_layers=num_layers)
        self._program = recorder.finish()
        self._pass.attention.bind(self._program)

    def run(self, batch: Batch, inputs: torch.Tensor | None = None) -> Pass:
        """``inputs``: f[T, ``input_size``] what a draft module reads beside the tokens.

        Raises:
            IndexError: a token, a position, a page or a cell that there is not.
        """
        rows, num_logits = len(batch.token_ids), len(batch.logit_rows)
        recorded = self._pass
        recorded.plan(batch)
        if inputs is not None:
            self._beside[:rows] = inputs
        self._program.run({TOKENS: rows, LOGITS: num_logits})
        return Pass(
            recorded.finished(recorded.logits[:num_logits]),
            recorded.hidden[:rows],
            None if recorded.features is None else recorded.features[:rows],
        )
