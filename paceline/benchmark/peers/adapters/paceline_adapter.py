"""Paceline itself, in a process like any other: so that several configurations of it take part in one run.

Settings: the engine's options, ``speculative_config`` included.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

# The checkout or installation that this file belongs to: its process is started without our variables.
sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

import torch

import paceline
from paceline import LLM, SamplingParams
from paceline.core.call import CallOptions
from paceline.engine.threads import choose_threads

Steps = list[tuple[float, int]]


class PacelineEngine:
    def __init__(self, model: str, settings: dict[str, Any]) -> None:
        self.llm = LLM(model, **{"speculative_config": None, "enable_prefix_caching": False, **settings})
        self.versions = {"paceline": paceline.__version__, "torch": torch.__version__}

    def generate(self, prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], Steps]:
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, detokenize=False)
        groups = [self.llm.input_processor.group(prompt, params, options=CallOptions()) for prompt in prompts]
        for group in groups:
            self.llm.engine.add(group)
        requests = [group.members[0] for group in groups]
        steps: Steps = []
        while not all(group.finished for group in groups):
            self.llm.engine.step()
            steps.append((time.perf_counter(), min(len(request.output_token_ids) for request in requests)))
        return [list(request.output_token_ids) for request in requests], steps


def load(model: str, threads: int, settings: dict[str, Any]) -> PacelineEngine:
    choose_threads(threads)
    return PacelineEngine(model, settings)
