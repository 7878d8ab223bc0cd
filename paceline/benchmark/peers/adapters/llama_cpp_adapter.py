"""llama.cpp through llama-cpp-python's low-level interface: one batch of several sequences a step.

Settings: type (f32, bf16, q8_0, q4_0: the model is exported to GGUF as that), flash_attn, and prompt_lookup (tokens
drafted from the text's own n-grams, one sequence at a time). The high-level class would add its own work to each token
and takes one sequence at a time.
"""

from __future__ import annotations

import ctypes
import functools
import time
from pathlib import Path
from typing import Any

import exports
import gguf_export
import llama_cpp
import numpy as np
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

Steps = list[tuple[float, int]]
MOST_TOKENS = 2048
"""A batch; longer prompts take several."""
CELLS = 256
"""Contexts are as long as needed, rounded up to this."""


ERROR = 4
"""llama.cpp's log level."""
said: list[str] = []
"""Errors that llama.cpp logged."""


def check(done: bool, what: str) -> None:
    if not done:
        raise RuntimeError(f"llama.cpp could not {what}: {' '.join(said[-2:]) or 'no reason was given'}")


class Context:
    """Memory for some sequences, and one batch that is filled and run again and again."""

    def __init__(self, model: Any, *, sequences: int, length: int, threads: int, flash_attn: bool) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = sequences * length, sequences
        params.n_batch, params.n_ubatch = MOST_TOKENS, 512
        params.n_threads = params.n_threads_batch = threads
        kinds = (llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED, llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED)
        params.flash_attn_type = kinds[flash_attn]
        params.kv_unified = False
        self.sequences, self.length = sequences, length
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.context = llama_cpp.llama_init_from_model(model, params)
        check(bool(self.context), "make a context")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(MOST_TOKENS, 0, 1)

    def close(self) -> None:
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(self.memory, False)

    def forget(self, position: int) -> None:
        """The only sequence's tokens from a position on."""
        llama_cpp.llama_memory_seq_rm(self.memory, 0, position, -1)

    def run(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Feeds (token, position, sequence, wanted); the most likely next token of every wanted row, in order."""
        found = []
        for first in range(0, len(rows), MOST_TOKENS):
            part = rows[first : first + MOST_TOKENS]
            for row, (token, position, sequence, wanted) in enumerate(part):
                self.batch.token[row], self.batch.pos[row] = token, position
                self.batch.n_seq_id[row], self.batch.seq_id[row][0] = 1, sequence
                self.batch.logits[row] = wanted
            self.batch.n_tokens = len(part)
            check(llama_cpp.llama_decode(self.context, self.batch) == 0, "run a batch")
            found += [self._most_likely(row) for row, (*_, wanted) in enumerate(part) if wanted]
        return found

    def _most_likely(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self.context, row)
        return int(np.ctypeslib.as_array(logits, shape=(self.vocab_size,)).argmax())


class LlamaCppEngine:
    def __init__(self, path: Path, threads: int, settings: dict[str, Any]) -> None:
        self.threads, self.settings = threads, settings
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        check(bool(self.model), "load the exported model")
        self.context: Context | None = None
        self.versions = {
            "llama-cpp-python": llama_cpp.__version__,
            "llama.cpp": llama_cpp.llama_print_system_info().decode().strip(),
        }

    def close(self) -> None:
        if self.context is not None:
            self.context.close()
        llama_cpp.llama_model_free(self.model)

    def generate(self, prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], Steps]:
        if not self.settings.get("prompt_lookup"):
            return self._together(prompts, max_tokens)
        answers: list[list[int]] = []
        steps: Steps = []
        for prompt in prompts:
            answer, times = self._looked_up(prompt, max_tokens)
            steps += [(at, len(answers) * max_tokens + count) for at, count in times]
            answers.append(answer)
        return answers, steps

    def _ready(self, sequences: int, length: int) -> Context:
        """An empty context for at least as much; kept, as making one takes time."""
        length = -(-length // CELLS) * CELLS
        old = self.context
        if old is None or old.sequences != sequences or old.length < length:
            if old is not None:
                self.context = None
                old.close()
            options = {"threads": self.threads, "flash_attn": self.settings.get("flash_attn", True)}
            self.context = Context(self.model, sequences=sequences, length=length, **options)
        assert self.context is not None
        self.context.clear()
        return self.context

    def _together(self, prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], Steps]:
        context = self._ready(len(prompts), max(map(len, prompts)) + max_tokens)
        rows = [
            (token, place, number, place == len(prompt) - 1)
            for number, prompt in enumerate(prompts)
            for place, token in enumerate(prompt)
        ]
        answers: list[list[int]] = [[] for _ in prompts]
        steps: Steps = []
        for count in range(1, max_tokens + 1):
            for answer, token in zip(answers, context.run(rows), strict=True):
                answer.append(token)
            steps.append((time.perf_counter(), count))
            rows = [
                (answer[-1], len(prompt) + count - 1, number, True)
                for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
            ]
        return answers, steps

    def _looked_up(self, prompt: list[int], max_tokens: int) -> tuple[list[int], Steps]:
        context = self._ready(1, len(prompt) + max_tokens)
        lookup = LlamaPromptLookupDecoding(num_pred_tokens=self.settings["prompt_lookup"])
        answer = context.run([(token, place, 0, place == len(prompt) - 1) for place, token in enumerate(prompt)])
        steps: Steps = [(time.perf_counter(), 1)]
        while len(answer) < max_tokens:
            known = np.array(prompt + answer, dtype=np.intc)
            draft = [int(token) for token in lookup(known)][: max_tokens - len(answer) - 1]
            start = len(known) - 1
            rows = [(token, start + place, 0, True) for place, token in enumerate([answer[-1], *draft])]
            found = context.run(rows)
            kept = next((place for place, token in enumerate(draft) if token != found[place]), len(draft))
            answer += found[: kept + 1]
            context.forget(start + kept + 1)
            steps.append((time.perf_counter(), len(answer)))
        return answer, steps


@functools.cache
def _listen() -> Any:
    """Keeps errors of llama.cpp's log and drops the rest; cached, as it must live while llama.cpp may call it."""

    def keep(level: int, text: bytes, _data: object) -> None:
        if level == ERROR:
            said.append(text.decode(errors="replace").strip())

    callback = llama_cpp.llama_log_callback(keep)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    return callback


def load(model: str, threads: int, settings: dict[str, Any]) -> LlamaCppEngine:
    kind = settings.get("type", "bf16")
    path = exports.exported(model, f"{kind}.gguf", lambda part: gguf_export.export(model, part, kind))
    _listen()
    llama_cpp.llama_backend_init()
    return LlamaCppEngine(path, threads, settings)
