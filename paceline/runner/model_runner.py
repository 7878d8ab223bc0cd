"""Runs one model over assembled batches; knows its layer groups and who computes its passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from paceline.attention import LayerMap
from paceline.cache.group import KVGroup
from paceline.core.batch import Batch, Int64, Output
from paceline.core.layer import LayerSpec
from paceline.models import CausalLM
from paceline.runner.executor import Pass
from paceline.runner.features import KeptFeatures, feature_group
from paceline.runner.impl import Choice, build_executor

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

    def __init__(self, model: CausalLM, groups: Sequence[KVGroup], *, choice: Choice, device: torch.device) -> None:
        self.model, self.groups, self.device = model, list(groups), device
        lifetimes = list(layers_by_lifetime(model.layer_specs).values())
        home = {layer: (group, index) for group, layers in enumerate(lifetimes) for index, layer in enumerate(layers)}
        self.layers = LayerMap(
            specs=model.layer_specs,
            stores=[group.store for group in self.groups],
            group_of=[home[layer][0] for layer in range(len(home))],
            index_in_group=[home[layer][1] for layer in range(len(home))],
        )
        self.executor = build_executor(choice, model, self.layers, device)
        self.kept: KeptFeatures | None = None
        """What every pass leaves behind for a drafter."""

    @torch.inference_mode()
    def forward(
        self,
        batch: Batch,
        taps: tuple[int, ...] = (),
        inputs: torch.Tensor | None = None,
        layers: int | None = None,
    ) -> Output:
        """One pass over the rows: logits f[R, V] of ``logit_rows``, and what else the batch asks for.

        ``inputs`` f[T, ``input_size``] is what a draft module reads beside the tokens; ``layers``, how many of the
        first ones are computed, is for drafts only.
        The tensors are valid until the next pass.
        """
        kept = self.kept if layers is None else None
        wanted = kept.taps if kept else taps
        found = self._unless_cut_short(lambda: self.executor.run(batch, wanted, inputs, layers))
        if kept is not None:
            self._keep(kept, batch, found)
        return Output(
            logits=found.logits,
            hidden=found.hidden,
            prompt_logits=self._prompt_logits(found.hidden, batch),
            features=found.features,
            pooled=self._chosen(found.hidden, batch.pooled_rows) if len(batch.pooled_rows) else None,
        )

    def _keep(self, kept: KeptFeatures, batch: Batch, found: Pass) -> None:
        """Leaves features in the cells of the rows' slots, as attention leaves K/V."""
        home = feature_group(self.groups)
        assert home is not None
        group, features = home
        rows = self.executor.apply(kept.fuse, kept.source(found.hidden, found.features))
        features[torch.from_numpy(batch.cells[group]).to(self.device)] = rows.to(features.dtype)

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
