"""Builds small engines in one line and runs jobs through them, checking the books after every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paceline.core.call import CallOptions
from paceline.core.config import EngineConfig, SpeculativeConfig
from paceline.core.params import SamplingParams
from paceline.core.request import Group
from paceline.engine.build import join_parts
from paceline.engine.engine import Engine
from paceline.engine.input_processor import InputProcessor
from paceline.models import CausalLM, DraftModule, MedusaHeads, load_draft_module, load_medusa_heads, load_model
from paceline.text import Tokenizer
from tests.support.checkpoints import dense_attend, full_pass

Tokens = list[list[int]]
"""One call's answers, a list of token ids each."""


@dataclass(frozen=True)
class Job:
    """A call to make: prompt token ids and what to do with them."""

    prompt: tuple[int, ...]
    params: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0.0, max_tokens=12))


@dataclass
class Models:
    """A target and what may draft for it, loaded once."""

    target: CausalLM
    drafts: dict[str, CausalLM]
    places: dict[str, Path] = field(default_factory=dict)
    """Directories of modules and heads for the target, of drafts that an engine changes, and of its tokenizer."""
    _loaded: dict[str, Any] = field(default_factory=dict)

    def __call__(self, name: str) -> CausalLM:
        if name in self.places:
            return load_model(self.places[name], dtype=self.target.dtype)
        return self.drafts[name]

    def tokenizer(self, name: str | None) -> Tokenizer | None:
        """Bare models have none: a draft's tokens are the target's."""
        place = self.places.get(name or "tokenizer")
        return None if place is None else Tokenizer.try_load(place)

    def module(self, name: str | None, target: CausalLM) -> DraftModule:
        return self._once(name, target, load_draft_module)

    def heads(self, name: str, target: CausalLM) -> MedusaHeads:
        return self._once(name, target, load_medusa_heads)

    def _once(self, name: str | None, target: CausalLM, load: Any) -> Any:
        assert name is not None
        if name not in self._loaded:
            self._loaded[name] = load(self.places[name], target)
        return self._loaded[name]

    def engine(self, speculation: dict[str, Any] | None = None, **options: Any) -> Engine:
        config = EngineConfig.of(
            **{"max_num_seqs": 8, **options}, speculative=SpeculativeConfig.of(speculation), device="cpu"
        )
        return join_parts(self.target, config, torch.device("cpu"), self)


def one_by_one(engine: Engine) -> Engine:
    """The engine, which from now on computes pass by pass and samples between them, as it does without native kernels.

    What stands around ``forward`` then sees every pass, and logits are there to be looked at.
    """
    engine.computation.graphs.enforce_eager = True
    return engine


def mixed_jobs(vocab_size: int) -> list[Job]:
    """Four calls: greedy, seeded with two answers, with a penalty that looks at the text, and with top-p."""
    first, second, third, fourth = prompts(4, vocab_size, [19, 6, 33, 3])
    return [
        Job(first, SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)),
        Job(second, SamplingParams(temperature=0.8, seed=4, n=2, max_tokens=25, ignore_eos=True)),
        Job(third, SamplingParams(temperature=0.0, max_tokens=12, repetition_penalty=1.2)),
        Job(fourth, SamplingParams(temperature=1.0, seed=9, max_tokens=28, top_p=0.9, ignore_eos=True)),
    ]


Hook = Callable[[Engine, int], None]


def run(engine: Engine, jobs: Sequence[Job], *, hook: Hook | None = None, speculate: bool = True) -> list[Tokens]:
    """Runs jobs together to their ends; after every step all pages must be accounted for."""
    processor = InputProcessor(engine, None)
    groups = [processor.group(list(job.prompt), job.params, options=CallOptions(speculate=speculate)) for job in jobs]
    for group in groups:
        engine.add(group)
    drive(engine, groups, hook)
    return [[member.output_token_ids for member in group.members] for group in groups]


def drive(engine: Engine, groups: Sequence[Group], hook: Hook | None = None) -> None:
    steps = 0
    while not all(group.finished for group in groups):
        engine.step()
        engine.cache.check()
        check_books(engine)
        steps += 1
        if hook is not None:
            hook(engine, steps)
        assert steps < 5000, "the engine makes no progress"
    counts = engine.cache.counts()
    assert counts.referenced == 0
    assert counts.free + counts.cached == counts.total


def check_books(engine: Engine) -> None:
    """After a step a running request has exactly one pending token, or is in mid-prompt, and its seat mirrors it."""
    counts = engine.cache.counts()
    assert counts.free + counts.cached + counts.referenced == counts.total
    cached = engine.cache.groups[0].num_cached
    for request in engine.scheduler.running:
        seat = request.seat
        known = (request.prompt_token_ids + request.output_token_ids)[request.num_dropped :]
        assert engine.seats.tokens[seat, : engine.seats.num_tokens[seat]].tolist() == known
        undisturbed = not request.num_preemptions and not request.num_slides
        if engine.cache.kind.retains and request.output_token_ids and undisturbed:
            assert len(known) - cached[seat] == 1


def preempt_every(period: int, times: int = 6) -> Hook:
    """Forces a running request back into the queue every ``period`` steps, a different one each time.

    Only so many times: recomputing in small chunks may take longer than the period.
    """

    def hook(engine: Engine, step: int) -> None:
        running = engine.scheduler.running
        if step % period == 0 and step <= period * times and running:
            engine.scheduler.preempt(running[step // period % len(running)])

    return hook


def cache_content(engine: Engine, model: CausalLM, group: int) -> None:
    """Every cached K/V of the group equals what the model computes for the request's tokens from scratch."""
    layers = engine.cache.groups[group]
    for request in engine.scheduler.running:
        count = int(layers.num_cached[request.seat])
        tokens = request.window[:count]
        if not tokens:
            continue
        expected = dense_kv(model, tokens, int(engine.seats.longest[request.seat]))
        pages = torch.tensor(layers.held_pages(request.seat), dtype=torch.int64)
        for layer, pair in enumerate(expected):
            for cells, wanted in zip(layers.store.read(layer, pages), pair, strict=True):
                held = cells.transpose(1, 2).flatten(0, 1)[:count]  # [slots, kv_head, dim]
                assert torch.allclose(held, wanted.to(held.dtype), atol=1e-9), f"{request.id}: layer {layer} differs"


def dense_kv(model: CausalLM, tokens: list[int], longest: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    captured: list[tuple[torch.Tensor, torch.Tensor]] = []
    dense = dense_attend(model)

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        captured.append((k, v))
        return dense(layer, q, k, v)

    with torch.inference_mode():
        full_pass(model, tokens, attend, longest=longest)
    return captured


def prompts(seed: int, vocab_size: int, lengths: Sequence[int]) -> list[tuple[int, ...]]:
    """Random prompts, each repeating a stretch of itself so that prompt lookup finds something."""
    random = np.random.default_rng(seed)
    made = []
    for length in lengths:
        tokens = random.integers(3, vocab_size, size=length)
        if length > 8:
            tokens[length // 2 :] = tokens[: length - length // 2]
        made.append(tuple(int(token) for token in tokens))
    return made
