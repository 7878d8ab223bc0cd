"""Knows how an engine does everything once before its first call, so that no caller pays for what is done lazily."""

from __future__ import annotations

from contextlib import suppress

from paceline.core.errors import InvalidRequestError
from paceline.core.params import SamplingParams
from paceline.engine.input_processor import InputProcessor
from paceline.engine.llm import LLM
from paceline.engine.pacer import StepPacer
from paceline.engine.stats import Counters
from paceline.scheduling import ChunkPacer

PROMPT_TOKENS = 8
OUTPUT_TOKENS = 6


def warm_up(llm: LLM) -> None:
    """Generates a few tokens, greedily and sampled, with drafts where there is a drafter, and forgets it all."""
    engine = llm.engine
    # An input processor of its own, since a call without a seed draws it from the number of calls before.
    processor = InputProcessor(engine, llm.tokenizer)
    prompt = [min(3, processor.model.vocab_size - 1)] * max(1, min(PROMPT_TOKENS, llm.max_model_len - OUTPUT_TOKENS))
    greedy = SamplingParams(temperature=0.0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    sampled = SamplingParams(seed=0, n=2, top_p=0.9, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    for params in (greedy, sampled):
        with suppress(InvalidRequestError):  # a cache that small has little to warm
            engine.add(processor.group(prompt, params, request_id="warm-up"))
    while engine.has_work:
        engine.step()
    _forget(llm)


def _forget(llm: LLM) -> None:
    engine = llm.engine
    while engine.cache.prefix.evict():
        pass
    engine.cache.num_prefix_queries = engine.cache.num_prefix_hits = 0
    engine.scheduler.num_preemptions = 0
    engine.counters = Counters(max_depth=engine.scheduler.max_depth)
    engine.scheduler.pacer = ChunkPacer(engine.config.prefill_chunk_seconds)
    engine.computation.eager_steps.clear()
    engine.pacer = StepPacer(engine.config.num_scheduler_steps)
