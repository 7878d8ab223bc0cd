"""Executors at the runner's seam: one follows a script instead of a model, one lets a test stand around passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from paceline.attention import LayerMap
from paceline.attention.spans import visible_slots
from paceline.core.batch import Batch
from paceline.core.layer import LayerSpec
from paceline.layers.embedding import InputEmbedding
from paceline.layers.placement import Placement
from paceline.models import CausalLM
from paceline.models.config import ModelConfig
from paceline.runner import ModelRunner, model_impls
from paceline.runner.executor import Executor, Pass
from paceline.runner.impl import Choice, ModelImpl
from tests.support.engines import Models

VOCAB_SIZE = 61
Script = Callable[[Sequence[int]], torch.Tensor]
"""All tokens that a row sees, itself the last one -> logits f[V] of the token behind them."""


class ScriptedModel(CausalLM):
    """What the engine asks of a model, without weights that mean anything: ``script`` says the logits."""

    def __init__(self, script: Script, *, vocab_size: int = VOCAB_SIZE, max_positions: int = 256) -> None:
        on = Placement(torch.float64, torch.device("cpu"))
        config = ModelConfig(
            family="scripted",
            vocab_size=vocab_size,
            hidden_size=1,
            num_layers=1,
            max_position_embeddings=max_positions,
            eos_token_ids=frozenset({1}),
            bos_token_id=None,
            tied=True,
            dtype=torch.float64,
        )
        layer = LayerSpec(num_heads=1, num_kv_heads=1, head_dim=1, scale=1.0)
        table = InputEmbedding(vocab_size, 1, on=on)
        super().__init__(config, embedding=table, blocks=[], layer_specs=[layer], norm=nn.Identity(), on=on)
        self.script = script


class ScriptedExecutor:
    """Keeps each row's token where its K lies, and shows the script what the row's pages say it sees.

    A page that is lost, shared or moved by mistake hence changes the text. ``hidden`` are the logits.
    """

    obstacle = "a script says the logits"

    def __init__(self, model: ScriptedModel, store: Any) -> None:
        self.script, self.store = model.script, store

    def run(self, batch: Batch, taps: Any, inputs: Any = None, layers: Any = None) -> Pass:
        cells, size = torch.from_numpy(batch.cells[0]), self.store.page_size
        tokens = torch.from_numpy(batch.token_ids).view(-1, 1, 1).double()
        self.store.write(0, tokens, tokens, cells // size, cells % size)
        logits = torch.stack([self.script(self._seen(batch, row)) for row in range(len(cells))])
        return Pass(logits[torch.from_numpy(batch.logit_rows)], logits, None)

    def _seen(self, batch: Batch, row: int) -> list[int]:
        number = int(batch.row_request[row])
        num_slots = int(batch.num_slots[number])
        pages = batch.page_table[0][number][: -(-num_slots // self.store.page_size)].astype(np.int64)
        held = self.store.read(0, torch.from_numpy(pages))[0].flatten()[:num_slots]
        seen = visible_slots(batch, 0, np.array([[row]]), np.array([number]), num_slots)[0, 0]
        return [int(token) for token in held[torch.from_numpy(seen)]]

    def forget(self) -> None:
        pass

    def capture(self, describe: Any, **tools: Any) -> Any:
        raise AssertionError(self.obstacle)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden

    def apply(self, module: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = module(*inputs)
        return found

    @staticmethod
    def takes(module: nn.Module) -> bool:
        return True


def _build(choice: Choice, model: CausalLM, layers: LayerMap, device: torch.device) -> Executor:
    assert isinstance(model, ScriptedModel)
    return ScriptedExecutor(model, layers.stores[0])


SCRIPTED = "scripted"
model_impls.add(SCRIPTED)(ModelImpl(_build, lambda *_: None, lambda *_: None, lambda *_: 0, keeps_half=True))


def babble(seed: int = 0, *, noise: float = 0.0, order: int = 2, vocab_size: int = VOCAB_SIZE) -> Script:
    """Random logits that hang on the last ``order`` tokens; with ``noise``, on all the others too, a little."""

    @cache
    def logits(seed: int, tokens: tuple[int, ...]) -> torch.Tensor:
        random = np.random.default_rng([seed, *tokens])
        return torch.from_numpy(3 * random.standard_normal(vocab_size))

    def script(tokens: Sequence[int]) -> torch.Tensor:
        found = logits(seed, tuple(tokens[-order:]))
        return found + noise * logits(seed + 1, tuple(tokens)) if noise else found

    return script


class WatchedExecutor:
    """Another executor, with ``around(batch, compute)`` standing around its passes."""

    def __init__(self, inner: Executor, around: Callable[[Any, Callable[[], Any]], Any]) -> None:
        self.inner, self.around = inner, around

    def run(self, batch: Batch, *more: Any) -> Any:
        return self.around(batch, lambda: self.inner.run(batch, *more))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def around_passes(runner: ModelRunner, around: Callable[[Any, Callable[[], Any]], Any]) -> Callable[[], None]:
    """Has ``around(batch, compute)`` stand around passes that are not replayed, until what it returns is called."""
    inner = runner.executor
    assert inner.obstacle is not None
    runner.executor = cast(Executor, WatchedExecutor(inner, around))

    def undo() -> None:
        runner.executor = inner

    return undo


class ScriptedModels(Models):
    """A target that babbles, and drafts: "near" is often right, "far" seldom."""

    def engine(self, speculation: dict[str, Any] | None = None, **options: Any) -> Any:
        return super().engine(speculation, **{"model_impl": SCRIPTED, **options})


def scripted_models(vocab_size: int = VOCAB_SIZE) -> ScriptedModels:
    def model(noise: float, *, aside: int = 0) -> ScriptedModel:
        return ScriptedModel(babble(aside, noise=noise, vocab_size=vocab_size), vocab_size=vocab_size)

    return ScriptedModels(model(0.05), {"near": model(0.3), "far": model(1.0)})


def spell(script: Script, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """What greedy decoding makes of a prompt, read off the script: an oracle that knows nothing of engines."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(int(script(tokens).argmax()))
    return tokens[len(prompt) :]
