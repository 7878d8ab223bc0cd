"""Knows how many of a head's draft tokens its target would accept, on replies that the target wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from paceline.training.compute import mixed_precision
from paceline.training.head import Head, Places, choose_places, read_states
from paceline.training.progress import Progress
from paceline.training.publishing import Given
from paceline.training.regenerate import TEMPERATURES
from paceline.training.stream import TokenStream
from paceline.training.workspace import write_json

NAMES = {0.0: "greedy", 0.7: "temperature_0.7"}


@dataclass(slots=True)
class Tally:
    """Per draft position: how much was reached, and how much of that was accepted."""

    reached: list[float]
    accepted: list[float]

    def figures(self) -> dict[str, Any]:
        rates = [a / r if r else None for a, r in zip(self.accepted, self.reached, strict=True)]
        survival = list(accumulate((rate or 0.0 for rate in rates), mul))
        return {
            "places": round(self.reached[0]),
            "acceptance_per_position": [None if rate is None else round(rate, 4) for rate in rates],
            "expected_tokens_per_step": round(1 + sum(survival), 4),
        }


@dataclass(frozen=True, slots=True)
class HeadMeasure:
    """A head drafts ``steps`` tokens from every place of a reply, as far as the reply goes.

    Under greedy decoding the reply is what the target chooses, so the head's first choices are followed as long as
    they are the target's. Above that the overlap sum(min(p, q)) is the chance that a draft token is accepted.
    """

    head: Head
    target: Any
    given: Given
    steps: int
    dtype: torch.dtype

    def figures(self, held_out: Sequence[TokenStream]) -> dict[str, Any]:
        """By the temperatures at which the replies were written."""
        found = {}
        for number, temperature in enumerate(TEMPERATURES):
            tally = Tally([0.0] * self.steps, [0.0] * self.steps)
            for stream in held_out[number :: len(TEMPERATURES)]:
                if len(stream.tokens) >= self.steps + 3:
                    self._add(stream, temperature, tally)
            found[NAMES[temperature]] = tally.figures()
        return found

    @torch.inference_mode()
    def _add(self, stream: TokenStream, temperature: float, tally: Tally) -> None:
        device = next(self.head.parameters()).device
        room = self.given.config.max_position_embeddings
        tokens, reply = (one[:room].unsqueeze(0).to(device) for one in (stream.tokens, stream.reply))
        with mixed_precision(device, self.dtype):
            states = read_states(self.target, tokens, self.given.taps)
            places = choose_places(tokens, reply, share=1.0, steps=self.steps)
            drafted = self.head(states, places, self.steps)
            logits = self.target.lm_head(states.hidden)
        going = places.counted[..., 0].float()
        for step in range(self.steps):
            going = going * places.counted[..., step]
            tally.reached[step] += float(going.sum())
            wanted = places.rows(logits, step + 1).float()
            kept = self._overlap(wanted, drafted[step].float(), temperature)
            tally.accepted[step] += float((going * kept).sum())
            if not temperature:  # what follows is known only where the reply has the target's choice
                kept = kept * (wanted.argmax(-1) == _tokens_at(tokens, places, step + 2))
            going = going * kept

    def _overlap(self, wanted: torch.Tensor, drafted: torch.Tensor, temperature: float) -> torch.Tensor:
        """[B, N] chances that a draft from logits [B, N, D] is accepted by the target's [B, N, V]."""
        ids = self.given.vocabulary.ids.to(wanted.device)
        if not temperature:
            return (wanted.argmax(-1) == ids[drafted.argmax(-1)]).float()
        p = functional.softmax(wanted / temperature, dim=-1)[..., ids]
        return torch.minimum(p, functional.softmax(drafted / temperature, dim=-1)).sum(-1)


def _tokens_at(tokens: torch.Tensor, places: Places, offset: int) -> torch.Tensor:
    return places.rows(tokens.unsqueeze(-1), offset).squeeze(-1)


def report(
    measure: HeadMeasure, held_out: Sequence[TokenStream], facts: Mapping[str, Any], out: Path, progress: Progress
) -> Mapping[str, Any]:
    """Measures, writes the figures to ``out`` and reports them."""
    progress.note("measuring on held-out prompts")
    metrics = {**facts, "acceptance": measure.figures(held_out)}
    write_json(out, metrics)
    lines = []
    for name, found in metrics["acceptance"].items():
        rates = "  ".join("-" if rate is None else f"{rate:.1%}" for rate in found["acceptance_per_position"])
        lines.append(f"{name}, {found['places']:,} places: accepted by position {rates}")
        lines.append(f"  expected tokens per step {found['expected_tokens_per_step']:.2f}")
    progress.result(metrics, [*lines, f"written to {out}"])
    return metrics
