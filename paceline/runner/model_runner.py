"""Runs one model over assembled batches; knows its layer groups and who computes its passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from paceline.attention import LayerMap
from paceline.cache.group import LayerGroup
from paceline.core.batch import Batch, Int32, Int64, Output, SampleRows
from paceline.core.layer import LayerSpec
from paceline.models import CausalLM
from paceline.runner.assemble import assemble_behind
from paceline.runner.impl import Choice, build_executor
from paceline.sampling import Pipeline

T = TypeVar("T")
PROMPT_ROWS_AT_ONCE = 256
"""Prompt rows whose logits are made together: bounds their memory at 256 x vocabulary."""


def layers_by_lifetime(specs: Sequence[LayerSpec]) -> dict[int | None, list[int]]:
    """Layer numbers by attention window: each entry becomes one layer group."""
    lifetimes: dict[int | None, list[int]] = {}
    for layer, spec in enumerate(specs):
        lifetimes.setdefault(spec.window, []).append(layer)
    return lifetimes


class ModelRunner:
    """A model, the groups its layers cache in (all of them, in ``layers_by_lifetime`` order), and an executor."""

    def __init__(self, model: CausalLM, groups: Sequence[LayerGroup], *, choice: Choice, device: torch.device) -> None:
        self.model, self.groups, self.device = model, list(groups), device
        lifetimes = list(layers_by_lifetime(model.layer_specs).values())
        home = {layer: (group, index) for group, layers in enumerate(lifetimes) for index, layer in enumerate(layers)}
        layers = LayerMap(
            specs=model.layer_specs,
            stores=[group.store for group in self.groups],
            group_of=[home[layer][0] for layer in range(len(home))],
            index_in_group=[home[layer][1] for layer in range(len(home))],
        )
        self.executor = build_executor(choice, model, layers, device)

    @torch.inference_mode()
    def forward(self, batch: Batch, taps: tuple[int, ...] = ()) -> Output:
        """One pass over the rows: logits f[R, V] of ``logit_rows``, and what else the batch asks for.

        The tensors are valid until the next pass.
        """
        found = self._unless_cut_short(lambda: self.executor.run(batch, taps))
        return Output(
            logits=found.logits,
            prompt_logits=self._prompt_logits(found.hidden, batch),
            features=found.features,
            pooled=self._chosen(found.hidden, batch.pooled_rows) if len(batch.pooled_rows) else None,
        )

    @torch.inference_mode()
    def chain(
        self,
        batch: Batch,
        rows: SampleRows,
        counts: Int32,
        pipeline: Pipeline,
        enders: Sequence[Sequence[int]] = (),
    ) -> Int64 | None:
        """Samples ``rows`` of a pass over ``batch``, feeds what came to a pass behind it, samples that, and so on.

        int64[1 + the largest of counts, R]: row r is fed ``counts[r]`` of its own tokens, the first of them to slot
        ``batch.context[r]``, and what it is given past that is nobody's. If any is fed, row r must be the only one of
        request r.
        A row that cannot be sampled is negative, as in ``Pipeline.sample``, and all behind it is nobody's. There may be
        fewer passes, if every row has had one of its ``enders`` before.

        None, and nothing was computed, where passes must be computed one by one, and rows be sampled between them.
        """
        sampling = pipeline.native(rows, at_once=not counts.any())
        if sampling is None:
            return None
        behind = assemble_behind(batch, rows, counts, self.groups, enders) if counts.any() else None
        return self._unless_cut_short(lambda: self.executor.chain(batch, rows, sampling, behind))

    def _unless_cut_short(self, compute: Callable[[], T]) -> T:
        """What ``compute`` returns; what raises may be half planned, and is not planned upon again."""
        try:
            return compute()
        except BaseException:
            self.executor.forget()
            raise

    def _chosen(self, hidden: torch.Tensor, rows: Int64) -> torch.Tensor:
        return hidden[torch.from_numpy(rows).to(self.device)]

    def _prompt_logits(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor | None:
        if not len(batch.prompt_rows):
            return None
        parts = self._chosen(hidden, batch.prompt_rows).split(PROMPT_ROWS_AT_ONCE)
        return torch.cat([self.executor.logits(part) for part in parts])
