"""One pass's ops within a program, from token ids to logits; knows its input buffers and what a step writes there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from paceline.attention import LayerMap
from paceline.core.batch import Batch, Int32, Int64
from paceline.kernels.native.structures import VisibilityArgs
from paceline.models import CausalLM, head_rows
from paceline.runner.native.attention import RecordedAttention, check_below
from paceline.runner.native.lowering import blocks, entries, record_embedding
from paceline.runner.native.recorder import LOGITS, Recorder
from paceline.runner.native.stream import Stream
from paceline.runner.native.weights import packed_of


@dataclass(frozen=True, slots=True)
class PassInputs:
    """What a pass reads that ops before it write, for T rows of which R are sampled."""

    token_ids: Int64  # [T]
    positions: Int64  # [T]
    angle_rows: Int64  # [T] of angles that are computed for a call
    cells: Sequence[Int64]  # [T] by layer group
    seen: Sequence[VisibilityArgs]  # by layer group
    logit_rows: Int64  # [R]
    samples: str
    """The count of R."""


class RecordedPass:
    """What a model computes of ``recorder.count`` rows; ``bind`` comes once the program is finished.

    ``hidden`` f32[T, D] after the final norm, ``logits`` f32[R, V], which ``finished`` completes.
    """

    def __init__(
        self,
        model: CausalLM,
        layers: LayerMap,
        recorder: Recorder,
        taps: tuple[int, ...] = (),
        inputs: PassInputs | None = None,
        *,
        beside: torch.Tensor | None = None,
        num_layers: int | None = None,
    ) -> None:
        """``inputs``: what ops before the pass write; without them each call of ``plan`` does.

        ``beside``: f32[T, ``input_size``] what a draft module reads beside the tokens. ``num_layers``: of the first
        layers; None: all.
        """
        self.model, self._taps = model, taps
        tokens = recorder.capacity[recorder.count]
        if inputs is None:
            self._token_ids, self._positions = (np.zeros(tokens, dtype=np.int64) for _ in range(2))
            self._samples, self._logit_rows = LOGITS, np.arange(recorder.capacity[LOGITS], dtype=np.int64)
            self.attention = RecordedAttention(model, layers, self._positions)
        else:
            self._token_ids, self._positions = inputs.token_ids, inputs.positions
            self._samples, self._logit_rows = inputs.samples, inputs.logit_rows
            self.attention = RecordedAttention(
                model, layers, inputs.positions, inputs.cells, inputs.seen, angle_rows=inputs.angle_rows
            )
        self._vocab_size = model.embedding.tokens.weight.shape[0]
        self._num_positions = _learned_positions(model)
        self.features = torch.empty(tokens, len(taps) * model.config.hidden_size) if taps else None
        x = record_embedding(model.embedding, recorder, *map(torch.from_numpy, (self._token_ids, self._positions)))
        if model.entry is not None:
            assert beside is not None
            x = entries.of(model.entry)(model.entry, recorder, x, beside)
        stream = Stream(recorder, x)
        chosen = model.blocks[:num_layers]
        for layer, block in enumerate(chosen):
            self._tap(stream, layer)
            blocks.of(block)(block, stream, layer, self.attention.record)
        self._tap(stream, len(chosen))
        self.hidden = stream.normed(model.norm)
        recorder.give(stream.rows())
        self.logits = self._record_logits(recorder)

    def _tap(self, stream: Stream, layer: int) -> None:
        size = self.model.config.hidden_size
        for place, tap in enumerate(self._taps):
            if tap == layer:
                assert self.features is not None
                stream.recorder.gather(stream.rows(), self.features[:, place * size : (place + 1) * size])

    def _record_logits(self, recorder: Recorder) -> torch.Tensor:
        narrow, head = self.model.narrow, packed_of(self.model.head)
        chosen = recorder.take(self.hidden.shape[1], self._samples)
        recorder.gather(self.hidden, chosen, torch.from_numpy(self._logit_rows), count=self._samples)
        if narrow is not None:
            wide, chosen = chosen, recorder.linear(chosen, packed_of(narrow), self._samples)
            recorder.give(wide)
        logits = recorder.linear(chosen, head, self._samples)
        recorder.give(chosen)
        if self.model.token_map is None or self.model.logit_softcap is not None:
            return logits
        narrow_logits, columns = logits, columns_of(self.model.token_map, self.model.config.vocab_size)
        logits = recorder.expand(narrow_logits, columns, self._samples)
        recorder.give(narrow_logits)
        return logits

    def finished(self, logits: torch.Tensor) -> torch.Tensor:
        """[R, V] what ``logits`` lack: torch caps them softly, and may only then expand them."""
        if self.model.logit_softcap is None:
            return logits
        return self.model.expanded(self.model.capped(logits))

    def give(self, recorder: Recorder) -> None:
        """Nothing recorded from now on reads ``logits``, nor ``hidden``, unless passes hand on what they computed."""
        if self.features is None and self.model.entry is None:
            recorder.give(self.hidden)
        recorder.give(self.logits)

    def plan(self, batch: Batch) -> None:
        """Has the ops compute the rows of ``batch``.

        Raises:
            IndexError: a token, a position, a page or a cell that there is not.
        """
        check_below(batch.token_ids, self._vocab_size, "token id")
        self._token_ids[: len(batch.token_ids)] = batch.token_ids
        self._logit_rows[: len(batch.logit_rows)] = batch.logit_rows
        self.check_positions(batch.positions)
        self._positions[: len(batch.positions)] = batch.positions
        self.attention.plan(batch)

    def check_positions(self, positions: Int32 | Int64) -> None:
        """
        Raises:
            IndexError: a position for which no embedding was learned.
        """
        if self._num_positions is not None:
            check_below(positions, self._num_positions, "position")


def columns_of(token_map: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """i64[V] the row of the output matrix that each token has, or -1.

    Raises:
        ValueError: tokens that there are not, or twice.
    """
    named = token_map[token_map >= 0]
    check_below(named.numpy(), vocab_size, "token of the output matrix")
    if len(named.unique()) != len(named):
        raise ValueError("two rows of the output matrix are of the same token")
    return head_rows(token_map, vocab_size)


def _learned_positions(model: CausalLM) -> int | None:
    embedding = model.embedding
    return None if embedding.positions is None else embedding.positions.weight.shape[0] - embedding.first_position
