"""Knows what all draft modules that read a target's features have in common; nothing of layouts or of drafting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from paceline.core.layer import LayerSpec
from paceline.layers.embedding import InputEmbedding
from paceline.layers.linear import Linear
from paceline.layers.placement import Placement
from paceline.layers.rotary import Rotary
from paceline.models.base import CausalLM, Entry
from paceline.models.decoder import DecoderConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftConfig(DecoderConfig):
    """A draft module; vocabulary and token ids are the target's."""

    taps: tuple[int, ...]
    """Layers of the target, in the order in which they run."""
    norm_output: bool = False
    """Rows of draft tokens read what is normed."""
    head_rows: int
    """Rows of the output matrix."""
    shares_table: bool
    """The embedding table is the target's."""
    shares_head: bool
    """So is the output matrix."""


class DraftModule(CausalLM):
    """A decoder whose row for a token reads, beside it, what the target computed of the token before.

    ``fuse`` maps what the target's ``taps`` give of T rows, f[T, taps * D of the target], to what the module reads,
    f[T, ``input_size``]. Rows of draft tokens read what the module itself computed of the token before: ``hidden`` if
    ``norm_output``, else tap ``num_layers``.
    """

    def __init__(
        self,
        config: DraftConfig,
        *,
        blocks: Sequence[nn.Module],
        layer_specs: Sequence[LayerSpec],
        norm: nn.Module,
        entry: Entry | None,
        fuse: nn.Module | None,
        on: Placement,
    ) -> None:
        """
        Args:
            config: what the module is; it has no part that is the target's before ``share``.
            blocks, layer_specs, norm, entry, on: as of ``CausalLM``.
            fuse: None: the target's final norm.
        """
        outside = Placement(on.dtype, torch.device("meta"))
        super().__init__(
            config,
            embedding=InputEmbedding(config.vocab_size, config.hidden_size, on=outside if config.shares_table else on),
            blocks=blocks,
            layer_specs=layer_specs,
            norm=norm,
            rotaries=[Rotary(rotary, on=on) for rotary in config.rotaries],
            rotary_of=config.rotary_of,
            entry=entry,
            head_rows=1 if config.shares_head else config.head_rows,
            on=on,
        )
        self.fuse: nn.Module = nn.Identity() if fuse is None else fuse
        self.taps, self.norm_output = config.taps, config.norm_output
        self._shares = config.shares_table, config.shares_head, fuse is None
        if config.shares_table:
            del self.embedding.tokens
        if config.shares_head:
            del self.head

    @property
    def feature_size(self) -> int:
        """Width of what is kept of each of the target's rows."""
        return self.input_size

    def share(self, target: CausalLM) -> None:
        """Takes over from the target what the checkpoint does not have: the same modules, no copies."""
        shares_table, shares_head, shares_norm = self._shares
        if shares_table:
            self.embedding.tokens = target.embedding.tokens
        if shares_head:
            self.head = target.head
        if shares_norm:
            self.fuse = target.norm


class JoinedLinear(Entry):
    """``linear`` of token rows and features side by side."""

    def __init__(self, linear: Linear, input_size: int) -> None:
        super().__init__()
        self.linear = linear
        self.input_size = input_size

    def forward(self, x: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """[T, D], [T, ``input_size``] -> the stream [T, D]."""
        joined: torch.Tensor = self.linear(torch.cat((x, inputs), dim=-1))
        return joined


class Joined(Entry):
    """Token rows and features side by side, [T, D + ``input_size``]."""

    def __init__(self, input_size: int) -> None:
        super().__init__()
        self.input_size = input_size

    def forward(self, x: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """[T, D], [T, ``input_size``] -> the stream."""
        return torch.cat((x, inputs), dim=-1)
