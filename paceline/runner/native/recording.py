"""One model's passes over up to so many rows, recorded; knows its input and output buffers."""

from __future__ import annotations

import numpy as np
import torch

from paceline.attention import LayerMap
from paceline.core.batch import Batch
from paceline.models import CausalLM
from paceline.runner.executor import Pass
from paceline.runner.native.attention import RecordedAttention, check_below
from paceline.runner.native.lowering import blocks, record_embedding
from paceline.runner.native.recorder import LOGITS, TOKENS, Recorder
from paceline.runner.native.stream import Stream
from paceline.runner.native.weights import packed_of


class Recording:
    """The ops of all layers, from token ids to logits, in one program."""

    def __init__(self, model: CausalLM, layers: LayerMap, taps: tuple[int, ...], capacity: dict[str, int]) -> None:
        self.model, self.taps, self.capacity = model, taps, capacity
        tokens = capacity[TOKENS]
        self._token_ids, self._positions = (np.zeros(tokens, dtype=np.int64) for _ in range(2))
        self._logit_rows = np.zeros(capacity[LOGITS], dtype=np.int64)
        self._vocab_size = model.embedding.tokens.weight.shape[0]
        self._num_positions = _learned_positions(model)
        self._features = torch.empty(tokens, len(taps) * model.config.hidden_size) if taps else None
        self._attention = RecordedAttention(model, layers, self._positions)
        recorder = Recorder(capacity)
        x = record_embedding(model.embedding, recorder, *map(torch.from_numpy, (self._token_ids, self._positions)))
        stream = Stream(recorder, x)
        for layer, block in enumerate(model.blocks):
            self._tap(recorder, stream, layer)
            blocks.of(block)(block, stream, layer, self._attention.record)
        self._tap(recorder, stream, len(model.blocks))
        self._hidden = stream.normed(model.norm)
        self._logits = self._record_logits(recorder)
        self._program = recorder.finish()
        self._attention.bind(self._program)

    def _tap(self, recorder: Recorder, stream: Stream, layer: int) -> None:
        size = self.model.config.hidden_size
        for place, tap in enumerate(self.taps):
            if tap == layer:
                assert self._features is not None
                recorder.gather(stream.rows(), self._features[:, place * size : (place + 1) * size])

    def _record_logits(self, recorder: Recorder) -> torch.Tensor:
        chosen = recorder.take(self._hidden.shape[1], LOGITS)
        recorder.gather(self._hidden, chosen, torch.from_numpy(self._logit_rows), count=LOGITS)
        if self.model.narrow is not None:
            chosen = recorder.linear(chosen, packed_of(self.model.narrow), LOGITS)
        return recorder.linear(chosen, packed_of(self.model.head), LOGITS)

    def run(self, batch: Batch) -> Pass:
        """
        Raises:
            IndexError: a token or a position that the model does not have.
        """
        rows, num_logits = len(batch.token_ids), len(batch.logit_rows)
        check_below(batch.token_ids, self._vocab_size, "token id")
        if self._num_positions is not None:
            check_below(batch.positions, self._num_positions, "position")
        self._token_ids[:rows] = batch.token_ids
        self._positions[:rows] = batch.positions
        self._logit_rows[:num_logits] = batch.logit_rows
        self._attention.plan(batch)
        self._program.run({TOKENS: rows, LOGITS: num_logits})
        return Pass(
            self.model.capped(self._logits[:num_logits]),
            self._hidden[:rows],
            None if self._features is None else self._features[:rows],
        )


def _learned_positions(model: CausalLM) -> int | None:
    embedding = model.embedding
    return None if embedding.positions is None else embedding.positions.weight.shape[0] - embedding.first_position
