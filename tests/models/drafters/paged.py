"""Feeds a draft module's rows as a step does, over K/V pages of its own, in torch or natively."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from paceline.attention import LayerMap
from paceline.cache.group import KVGroup
from paceline.cache.pages import PageAllocator
from paceline.cache.stores import DenseStore
from paceline.core.batch import Batch
from paceline.core.seats import Seats
from paceline.core.step import DraftTrees
from paceline.models import CausalLM
from paceline.models.drafters import DraftModule
from paceline.models.drafters.block import BlockDraftModule
from paceline.runner.executor import Pass
from paceline.runner.native import NativeExecutor
from paceline.runner.rows import RowSpec, RowState, place
from paceline.runner.torch_executor import TorchExecutor

NUM_PAGES, PAGE_SIZE, MAX_LEN = 12, 4, 40
SEAT = 1
ALONE = 2**30
"""A first slot beyond all slots: rows see only themselves."""


class Paged:
    """One request's pages; any models of the same layers may write to them and read them."""

    def __init__(self, model: CausalLM, impl: str) -> None:
        random = np.random.default_rng(0)
        store = DenseStore(
            model.layer_specs, num_pages=NUM_PAGES + 1, page_size=PAGE_SIZE, dtype=model.dtype, device="cpu"
        )
        for layer in range(len(model.layer_specs)):
            for pool in store.pools(layer):
                pool.fill_(7.0)  # what nobody wrote shows in whoever sees it
        self.group = KVGroup("draft", store, PageAllocator(NUM_PAGES), num_seats=2, max_slots=MAX_LEN, window=None)
        pages = -(-MAX_LEN // PAGE_SIZE)
        self.group.page_table[SEAT] = 1 + random.permutation(NUM_PAGES)[:pages]
        count = len(model.layer_specs)
        self.layers = LayerMap(model.layer_specs, [store], [0] * count, list(range(count)))
        self.seats = Seats(2, MAX_LEN)
        self.seats.longest[:] = MAX_LEN
        self.impl = impl
        self._executors: dict[int, TorchExecutor | NativeExecutor] = {}

    def feed_known(
        self, model: CausalLM, tokens: Sequence[int], inputs: torch.Tensor, *, sampled: bool = True, **spec: int
    ) -> Pass:
        """Known tokens from slot 1 on, each beside a row of ``inputs``."""
        self.seats.tokens[SEAT, 1 : len(tokens) + 1] = tokens
        batch = self._rows(RowSpec(**{"first_slot": 1, **spec}), len(tokens) + 1, DraftTrees.empty(1), sampled=sampled)
        return self._run(model, batch, inputs)

    def feed_with_masks(self, model: BlockDraftModule, tokens: Sequence[int], count: int, inputs: torch.Tensor) -> Pass:
        """Known tokens from slot 1 on, and ``count`` rows of the mask token behind them."""
        self.seats.tokens[SEAT, 1 : len(tokens) + 1] = tokens
        masks = np.full((1, count), model.block.mask_token_id, dtype=np.int32)
        drafts = DraftTrees.chains(masks, np.array([count], dtype=np.int32))
        wanted = RowSpec(num_nodes=count, first_slot=1)
        return self._run(model, self._rows(wanted, len(tokens) + 1, drafts, sampled=True, limit=count), inputs)

    def feed_block(self, model: CausalLM, context: int, tokens: Sequence[int], **spec: int) -> Pass:
        """Nodes behind ``context`` known tokens, each of which sees all of them."""
        count = np.array([len(tokens)], dtype=np.int32)
        drafts = DraftTrees.chains(np.array([tokens], dtype=np.int32), count)
        wanted = RowSpec(known=False, num_nodes=len(tokens), first_slot=1, **spec)
        batch = self._rows(wanted, context, drafts, sampled=True, limit=len(tokens))
        all_bits = np.full((len(tokens), 1), 2 ** len(tokens) - 1, dtype=np.int64)
        visible = np.full(len(tokens), context, dtype=np.int32)
        return self._run(model, replace(batch, tree_bits=all_bits, visible=visible), None)

    def _rows(self, spec: RowSpec, context: int, drafts: DraftTrees, *, sampled: bool, limit: int = 0) -> Batch:
        numbers = (np.array([number], dtype=np.int32) for number in (SEAT, context, 1))
        state = RowState(*numbers, np.zeros(1, dtype=np.int64), np.array([sampled]), np.array([limit], dtype=np.int32))
        return place(spec, state, drafts, self.seats, [self.group]).batch

    def fuse(self, module: DraftModule, features: torch.Tensor) -> torch.Tensor:
        """What is kept of the target's rows."""
        with torch.inference_mode():
            return self._executor(module).apply(module.fuse, features).clone()

    def _run(self, model: CausalLM, batch: Batch, inputs: torch.Tensor | None) -> Pass:
        with torch.inference_mode():
            found = self._executor(model).run(batch, (), inputs)
            return Pass(found.logits.clone(), found.hidden.clone(), None)

    def _executor(self, model: CausalLM) -> TorchExecutor | NativeExecutor:
        if id(model) not in self._executors:
            self._executors[id(model)] = (
                NativeExecutor(model, self.layers)
                if self.impl == "native"
                else TorchExecutor(model, self.layers, attention_backend="sdpa", device=torch.device("cpu"))
            )
        return self._executors[id(model)]
