"""Knows what every model family has in common: the decoder's loop over flat rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from paceline.core.batch import Int32, Int64
from paceline.core.layer import LayerSpec, PassContext
from paceline.layers.embedding import InputEmbedding
from paceline.layers.linear import Linear
from paceline.layers.placement import Placement
from paceline.layers.rotary import Rotary
from paceline.models.config import ModelConfig


class Entry(nn.Module):
    """Joins a draft module's token rows with what it reads beside them.

    Subclasses map ``forward(x [T, D], inputs [T, input_size])`` to the first residual stream, [T, any width].
    """

    input_size: int


class LoadedModule(nn.Module):
    """What the tensors of a checkpoint fill."""

    config: ModelConfig


class CausalLM(LoadedModule):
    """A decoder over flat rows: T rows of any requests, no batch dimension, no cache and no masks of its own."""

    token_map: torch.Tensor | None

    def __init__(
        self,
        config: ModelConfig,
        *,
        embedding: InputEmbedding,
        blocks: Sequence[nn.Module],
        layer_specs: Sequence[LayerSpec],
        norm: nn.Module,
        on: Placement,
        rotaries: Sequence[Rotary] = (),
        rotary_of: Sequence[int] | None = None,
        narrow: Linear | None = None,
        logit_softcap: float | None = None,
        entry: Entry | None = None,
        head_rows: int | None = None,
        token_map: torch.Tensor | None = None,
    ) -> None:
        """
        Args:
            config: what the model is.
            embedding: makes the residual stream.
            blocks: the layers.
            layer_specs: what each layer needs of memory and attention.
            norm: the final norm.
            on: where parameters lie.
            rotaries: the rotary embeddings; none where positions are learned.
            rotary_of: each layer's index into ``rotaries``; None gives all layers the first.
            narrow: maps the normed stream to the width of the output matrix, where the two differ (OPT-350m).
            logit_softcap: logits become ``softcap * tanh(logit / softcap)``.
            entry: joins token rows with what a draft module reads beside them.
            head_rows: rows of the output matrix; None: as many as ``token_map``, or as the embedding table has.
            token_map: i64[``head_rows``] the token of each of these rows, all different, or -1 of a row that is of
                none; the other tokens get -inf. A checkpoint that is read later may set it.

        Raises:
            ValueError: an output matrix that is the embedding table, but has other rows.
        """
        super().__init__()
        self.config = config
        self.layer_specs = tuple(layer_specs)
        self.embedding = embedding
        self.entry = entry
        self.rotaries = nn.ModuleList(rotaries)
        self.rotary_of = tuple(rotary_of or [0] * len(self.layer_specs))
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.narrow = narrow
        self.logit_softcap = logit_softcap
        self.register_buffer("token_map", token_map)
        self.head = Linear(self._output_matrix(head_rows, on))
        self._depends_on_length = any(rotary.depends_on_length for rotary in rotaries)

    def _output_matrix(self, rows: int | None, on: Placement) -> nn.Parameter:
        tied = self.embedding.tokens.weight
        if rows is None:
            rows = tied.shape[0] if self.token_map is None else len(self.token_map)
        if not self.config.tied:
            return on.matrix(rows, tied.shape[1])
        if rows != tied.shape[0]:
            raise ValueError(
                f"the output matrix has {rows} rows, and the embedding table, which it is, {tied.shape[0]}\n"
                "Set tie_word_embeddings to false in config.json."
            )
        return tied

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.tokens.weight.device

    def regimes(self, longest: Int32) -> Int64 | None:
        """What ``forward`` needs to know of sequences i32[B] that may come to have so many tokens; None: nothing.

        K/V computed in one regime are of no use in another.
        """
        if not self._depends_on_length:
            return None
        # A regime is itself a length, the least that is as good; hence the greatest is good for all rotaries.
        lengths = longest.astype(np.int64)
        found: Int64 = np.max([rotary.regimes(lengths) for rotary in self._rotaries()], axis=0)
        return found if found.any() else None

    def _rotaries(self) -> list[Rotary]:
        return [rotary for rotary in self.rotaries if isinstance(rotary, Rotary)]

    @property
    def input_size(self) -> int:
        """Width of ``PassContext.inputs``; 0 if the model reads token ids alone."""
        return 0 if self.entry is None else self.entry.input_size

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, context: PassContext
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Runs i64[T] token ids at i64[T] positions through all layers.

        Returns:
            hidden [T, D] after the final norm; and, if ``context.taps`` names layers, features [T, len(taps) * D]: the
            residual stream that enters each of them, side by side. Tap ``num_layers`` is what leaves the last one.
        """
        taps = context.taps
        x = self.embedding(token_ids, positions)
        if self.entry is not None:
            assert context.inputs is not None
            x = self.entry(x, context.inputs)
        rotations = [rotary(positions, context.rope_length) for rotary in self.rotaries] or [None]
        entering: dict[int, torch.Tensor] = {}
        chosen = self.blocks[: context.layers]
        for layer, block in enumerate(chosen):
            if layer in taps:
                entering[layer] = x
            x = block(layer, x, rotations[self.rotary_of[layer]], context.attend)
        entering[len(chosen)] = x
        features = torch.cat([entering[tap] for tap in taps], dim=-1) if taps else None
        return self.norm(x), features

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, D] -> [R, V], in the model's dtype."""
        if self.narrow is not None:
            hidden = self.narrow(hidden)
        return self.expanded(self.capped(self.head(hidden)))

    def capped(self, scores: torch.Tensor) -> torch.Tensor:
        """[R, V_head] as the output matrix gives them, softly capped."""
        if self.logit_softcap is None:
            return scores
        return torch.tanh(scores / self.logit_softcap) * self.logit_softcap

    def expanded(self, scores: torch.Tensor) -> torch.Tensor:
        """[R, V_head] -> [R, V]: -inf of the tokens that the output matrix lacks."""
        if self.token_map is None:
            return scores
        rows = head_rows(self.token_map, self.config.vocab_size)
        nothing = scores.new_full((len(scores), 1), -torch.inf)
        padded = torch.cat([scores, nothing], dim=1)
        return padded.index_select(1, rows % padded.shape[1])  # -1 is the last column

    def map_logits(self, token_map: torch.Tensor | None, vocab_size: int) -> None:
        """From now on logits are of ``vocab_size`` tokens, the output matrix's rows being those of ``token_map``."""
        self.token_map = None if token_map is None else token_map.to(self.device)
        self.config = replace(self.config, vocab_size=vocab_size)

    def widen_table(self, num_tokens: int) -> None:
        """Gives the embedding table rows of zeros up to ``num_tokens``: such tokens can be fed, and mean nothing.

        The output matrix keeps its rows, also one that is the table.
        """
        table = self.embedding.tokens.weight
        if len(table) >= num_tokens:
            return
        wide = table.new_zeros(num_tokens, table.shape[1])
        wide[: len(table)] = table.detach()
        self.embedding.tokens.weight = nn.Parameter(wide, requires_grad=False)
        if self.head.weight is table:
            self.head.weight = nn.Parameter(wide[: len(table)], requires_grad=False)


def head_rows(token_map: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """i64[V] the row of the output matrix that each token has, or -1."""
    # One place more takes the rows that are of no token.
    rows = torch.full((vocab_size + 1,), -1, dtype=torch.int64, device=token_map.device)
    rows[token_map] = torch.arange(len(token_map), device=token_map.device)
    return rows[:vocab_size]
