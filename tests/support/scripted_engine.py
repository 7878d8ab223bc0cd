"""An engine that follows a script: for faults that a real one does not show on demand."""

from __future__ import annotations

import asyncio
import os

from paceline.core.errors import EngineDeadError, InvalidRequestError
from paceline.core.outputs import CompletionDelta, RequestMetrics, StreamUpdate, TokenLogprobs
from paceline.core.request import FinishReason
from paceline.text import Detokenizer
from tests.support.tokenizers import byte_level


class ScriptedEngine:
    """Answers every call with ``answer``, one token per update; ``fault`` strikes after ``fault_after`` tokens."""

    def __init__(
        self, answer="Hello wörld, this is an answer.", *, fault=None, fault_after=0, pause=0.0, tokenizer=True
    ):
        self.tokenizer = byte_level() if tokenizer else None
        self.script = byte_level().encode(answer)
        self.model_name, self.max_model_len, self.vocab_size, self.alive = "scripted", 4096, 320, True
        self.context_overflow = "error"
        self.stalled, self.loaded, self.restarts, self.closed = False, True, 0, False
        self.retry_after = None
        self.fault, self.fault_after, self.pause = fault, fault_after, pause
        self.running, self.aborted, self.calls = set(), [], []

    @property
    def ready(self):
        return self.loaded and self.alive and not self.stalled

    async def generate(self, prompt_token_ids, params, *, request_id, options):
        if not self.alive:
            raise EngineDeadError("dead", retry_after=self.retry_after)
        room = self.max_model_len - len(prompt_token_ids)
        if room < 1:
            raise InvalidRequestError("too long", param="messages", code="context_length_exceeded")
        self.calls.append((prompt_token_ids, params, options))
        self.running.add(request_id)
        if options.pooling is not None:
            ended = CompletionDelta(index=0, text="", token_ids=[], finish_reason="stop")
            yield StreamUpdate(request_id, [ended], RequestMetrics(num_cached_tokens=4), embedding=[0.6, -0.8])
            self.running.discard(request_id)
            return
        detokenizers = [Detokenizer(self.tokenizer or byte_level(), params) for _ in range(params.num_samples)]
        limit = min(len(self.script), params.max_tokens, room)
        try:
            for count, token in enumerate(self.script[:limit], 1):
                await asyncio.sleep(self.pause)
                if request_id in self.aborted:
                    ended = CompletionDelta(index=0, text="", token_ids=[], finish_reason="abort")
                    yield StreamUpdate(request_id, [ended], RequestMetrics())
                    return
                deltas, over = [], False
                for index, detokenizer in enumerate(detokenizers):
                    stopped = detokenizer.push(token)
                    over = stopped or count == limit
                    deltas.append(self.delta(index, detokenizer, token, params=params, count=count, over=over))
                metrics = RequestMetrics(3, 2, 1.5, 0.1, 0.01, 0, 4) if over else None
                prompt = self.prompt_logprobs(prompt_token_ids) if params.prompt_logprobs is not None else None
                # The last answers are the best.
                best = list(range(params.num_samples))[::-1][: params.n] if params.best_of else list(range(params.n))
                yield StreamUpdate(
                    request_id,
                    deltas,
                    metrics,
                    prompt_logprobs=prompt if count == 1 else None,
                    selected=best if over else None,
                )
                if over:
                    return
        finally:
            self.running.discard(request_id)

    def prompt_logprobs(self, prompt):
        return [None, *(TokenLogprobs(token, -1.5, 2, ((7, -0.25), (token, -1.5))) for token in prompt[1:])]

    def delta(self, index, detokenizer, token, *, params, count, over):
        stop = FinishReason.STOP if detokenizer.stop_string else FinishReason.LENGTH
        reason = stop if over else None
        if self.fault is not None and count > self.fault_after:
            if isinstance(self.fault, BaseException):
                raise self.fault
            reason, over = self.fault, True
        logprobs = [TokenLogprobs(token, -0.5, 1, ((token, -0.5), (40, float("-inf"))))]
        return CompletionDelta(
            index=index,
            text=detokenizer.take_delta(finished=over),
            token_ids=[token],
            logprobs=logprobs if params.logprobs is not None else None,
            token_drafted=[count % 2 == 0],
            finish_reason=str(reason) if reason else None,
            stop_reason=detokenizer.stop_string,
            token_times=[0.5 * count],
        )

    def abort(self, request_id):
        self.aborted.append(request_id)

    def stats(self):
        if not self.alive:
            raise EngineDeadError("dead")
        return {
            "num_requests_running": len(self.running),
            "num_requests_waiting": 0,
            "eager_steps": {"logprobs": 3},
            "num_preemptions": 1,
            "prefix_cache": {"queries": 20, "hits": 12},
            "step_tokens": {"up_to": [1, 8], "counts": [5, 2, 1], "total": 60},
            "cache_config": {"block_size": 16, "num_gpu_blocks": 10, "cache_dtype": "float32"},
            "pid": os.getpid(),
            "pages": {"free": 5, "cached": 2, "referenced": 3, "total": 10},
            "speculation": {"num_drafts": 4, "num_drafted": 9, "num_accepted": 6, "accepted_per_position": [4, 2]},
        }

    def close(self, timeout=10.0):
        self.alive, self.closed = False, True
