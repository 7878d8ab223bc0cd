"""vLLM on the CPU: its engine stepped in this process, prefix caching off as every prompt is asked more than once.

Settings: dtype; enforce_eager (else it compiles the model at start, as it does by default).
"""

from __future__ import annotations

import os
import time
from typing import Any

MEMORY_GIB = "2"
"""For K/V; it holds sixteen sequences of the longest."""
LONGEST = 2048
Steps = list[tuple[float, int]]


class VllmEngine:
    def __init__(self, model: str, threads: int, settings: dict[str, Any]) -> None:
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": MEMORY_GIB,
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads])),
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        import vllm  # it reads its variables when it is imported  # noqa: PLC0415

        self.vllm, self.asked = vllm, 0
        self.engine = vllm.LLM(
            model=model,
            dtype=settings.get("dtype", "bfloat16"),
            enforce_eager=settings.get("enforce_eager", False),
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            max_model_len=LONGEST,
            max_num_batched_tokens=LONGEST,
            max_num_seqs=64,
        ).llm_engine
        self.versions = {"vllm": vllm.__version__}

    def generate(self, prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], Steps]:
        params = self.vllm.SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        answers: dict[str, list[int]] = {}
        for prompt in prompts:
            self.asked += 1
            answers[str(self.asked)] = []
            self.engine.add_request(str(self.asked), {"prompt_token_ids": prompt}, params)
        steps: Steps = []
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                answers[output.request_id] = list(output.outputs[0].token_ids)
            steps.append((time.perf_counter(), min(map(len, answers.values()))))
        return list(answers.values()), steps


def load(model: str, threads: int, settings: dict[str, Any]) -> VllmEngine:
    return VllmEngine(model, threads, settings)
