"""What the engine's tests share: short ways to ask, to watch steps, and to see that nothing is held any more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from paceline import LLM, RequestOutput, SamplingParams
from paceline.core.request import Group
from paceline.engine.engine import Engine
from paceline.engine.input_processor import InputProcessor
from tests.support.engines import check_books

END = 1
"""The tiny checkpoints' end-of-sequence token."""
VOCAB_SIZE = 320


def make(path: Path, draft: Path | None = None, *, depth: int = 4, **options: Any) -> LLM:
    """An LLM in float64, where rows do not depend on their neighbours; ``draft`` turns speculation on."""
    speculation = {"method": "draft_model", "model": str(draft), "num_speculative_tokens": depth} if draft else None
    return LLM(
        str(path),
        speculative_config=options.pop("speculative_config", speculation),
        **{"dtype": "float64", "max_num_seqs": 8, "device": "cpu", **options},
    )


def greedy(**controls: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 12, **controls})


def seeded(seed: int = 3, **controls: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 1.0, "seed": seed, "max_tokens": 12, **controls})


def tokens_of(outputs: Sequence[RequestOutput]) -> list[list[list[int]]]:
    return [[answer.token_ids for answer in output.outputs] for output in outputs]


def only(outputs: Sequence[RequestOutput]) -> Any:
    """The one answer of the one call."""
    (output,) = outputs
    (answer,) = output.outputs
    return answer


def assert_idle(engine: Engine) -> None:
    """Nothing runs or waits, no page is referenced and no seat taken."""
    engine.cache.check()
    counts = engine.cache.counts()
    assert counts.referenced == 0
    assert counts.free + counts.cached == counts.total
    assert not engine.scheduler.running
    assert not engine.scheduler.waiting
    assert engine.seats.num_free == engine.seats.capacity
    assert not engine.pipeline.state.active.any()


def begin(
    engine: Engine,
    prompt: Sequence[int],
    params: SamplingParams,
    *,
    processor: InputProcessor | None = None,
    **more: Any,
) -> Group:
    """Adds a call to a bare engine, as one of several that are stepped by hand."""
    group = (processor or InputProcessor(engine, None)).group(list(prompt), params, **more)
    engine.add(group)
    return group


def answers(group: Group) -> list[list[int]]:
    return [member.output_token_ids for member in group.members]


def finish(
    engine: Engine, groups: Sequence[Group], each_step: Callable[[], None] = lambda: None
) -> list[list[list[int]]]:
    """Steps until all groups have ended, checking the books after every step."""
    for _ in range(3000):
        if all(group.finished for group in groups):
            return [answers(group) for group in groups]
        engine.step()
        engine.cache.check()
        check_books(engine)
        each_step()
    raise AssertionError("the engine makes no progress")


def random_prompt(seed: int, length: int, vocab_size: int = VOCAB_SIZE) -> list[int]:
    """Token ids without special ones; the second half repeats the first, so that prompt lookup finds something."""
    tokens = np.random.default_rng(seed).integers(3, vocab_size, size=length)
    tokens[length // 2 :] = tokens[: length - length // 2]
    return [int(token) for token in tokens]


def reference_logprobs(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """[T, V] log-probabilities of the token after each of ``tokens``, by transformers."""
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0]
        return logits.log_softmax(-1)
