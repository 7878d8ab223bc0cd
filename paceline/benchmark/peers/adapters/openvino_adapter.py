"""OpenVINO GenAI: its continuous-batching pipeline, on a model that optimum-intel exported with int8 weights.

Settings: bits of the weights (8, or 4 in groups of 32); symmetric; prompt_lookup (tokens drafted from the text's own
n-grams).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import exports
import numpy as np
import openvino
import openvino_genai

MEMORY_GIB = 2
MOST_TOKENS = 2048
Steps = list[tuple[float, int]]


def export(model: str, path: Path, bits: int, symmetric: bool) -> None:
    """Writes the model and a tokenizer of its own shape to a directory; torch is needed for this alone."""
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig  # noqa: PLC0415

    groups = {"group_size": 32, "ratio": 1.0} if bits == 4 else {}
    config = OVWeightQuantizationConfig(bits=bits, sym=symmetric, **groups)
    OVModelForCausalLM.from_pretrained(model, export=True, quantization_config=config, compile=False).save_pretrained(
        path
    )


class OpenVinoEngine:
    def __init__(self, path: Path, threads: int, settings: dict[str, Any]) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = MEMORY_GIB
        scheduler.max_num_batched_tokens = MOST_TOKENS
        scheduler.enable_prefix_caching = False
        self.lookup = settings.get("prompt_lookup")
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        if self.lookup:
            options["prompt_lookup"] = True
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(str(path), scheduler, "CPU", options)
        self.asked = 0
        self.versions = {"openvino-genai": openvino_genai.__version__, "openvino": openvino.__version__}

    def generate(self, prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], Steps]:
        config = openvino_genai.GenerationConfig(max_new_tokens=max_tokens, ignore_eos=True, do_sample=False)
        if self.lookup:
            config.num_assistant_tokens, config.max_ngram_size = self.lookup, 3
        handles = []
        for prompt in prompts:
            self.asked += 1
            ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
            handles.append(self.pipeline.add_request(self.asked, ids, config))
        answers: list[list[int]] = [[] for _ in prompts]
        steps: Steps = []
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            for answer, handle in zip(answers, handles, strict=True):
                while handle.can_read():
                    for part in handle.read().values():
                        answer.extend(part.generated_ids)
            steps.append((time.perf_counter(), min(map(len, answers))))
        return [answer[:max_tokens] for answer in answers], steps


def load(model: str, threads: int, settings: dict[str, Any]) -> OpenVinoEngine:
    bits, symmetric = settings.get("bits", 8), settings.get("symmetric", False)
    name = f"openvino-int{bits}{'-symmetric' if symmetric else ''}"
    path = exports.exported(model, name, lambda part: export(model, part, bits, symmetric))
    return OpenVinoEngine(path, threads, settings)
