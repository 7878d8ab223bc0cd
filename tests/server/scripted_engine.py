"""An engine that follows a script: for faults that a real one does not show on demand."""

from __future__ import annotations

import asyncio

from paceline.core.errors import EngineDeadError, InvalidRequestError
from paceline.core.outputs import CompletionDelta, RequestMetrics, StreamUpdate, TokenLogprobs
from paceline.core.request import FinishReason
from paceline.text import Detokenizer
from tests.text.tokenizers_for_tests import byte_level


class ScriptedEngine:
    """Answers every call with ``answer``, one token per update; ``fault`` strikes after ``fault_after`` tokens."""

    def __init__(
        self, answer="Hello wörld, this is an answer.", *, fault=None, fault_after=0, pause=0.0, tokenizer=True
    ):
        self.tokenizer = byte_level() if tokenizer else None
        self.script = byte_level().encode(answer)
        self.model_name, self.max_model_len, self.vocab_size, self.alive = "scripted", 4096, 320, True
        self.stalled, self.loaded, self.restarts, self.closed = False, True, 0, False
        self.fault, self.fault_after, self.pause = fault, fault_after, pause
        self.running, self.aborted, self.calls = set(), [], []

    @property
    def ready(self):
        return self.loaded and self.alive and not self.stalled

    async def generate(self, prompt_token_ids, params, *, request_id, options):
        room = self.max_model_len - len(prompt_token_ids)
        if room < 1:
            raise InvalidRequestError("too long", param="messages", code="context_length_exceeded")
        self.calls.append((prompt_token_ids, params, options))
        self.running.add(request_id)
        watchers = [Detokenizer(self.tokenizer, params) for _ in range(params.n)]
        limit = min(len(self.script), params.max_tokens, room)
        try:
            for count, token in enumerate(self.script[:limit], 1):
                await asyncio.sleep(self.pause)
                deltas, over = [], False
                for index, watcher in enumerate(watchers):
                    stopped = watcher.push(token)
                    over = stopped or count == limit
                    deltas.append(self.delta(index, watcher, token, params=params, count=count, over=over))
                metrics = RequestMetrics(3, 2, 1.5, 0.1, 0.01, 0, 4) if over else None
                yield StreamUpdate(request_id, deltas, metrics)
                if over:
                    return
        finally:
            self.running.discard(request_id)

    def delta(self, index, watcher, token, *, params, count, over):
        stop = FinishReason.STOP if watcher.stop_string else FinishReason.LENGTH
        reason = stop if over else None
        if self.fault is not None and count > self.fault_after:
            if isinstance(self.fault, BaseException):
                raise self.fault
            reason, over = self.fault, True
        logprobs = [TokenLogprobs(token, -0.5, 1, ((token, -0.5), (40, float("-inf"))))]
        return CompletionDelta(
            index=index,
            text=watcher.take_delta(finished=over),
            token_ids=[token],
            logprobs=logprobs if params.logprobs is not None else None,
            token_drafted=[count % 2 == 0],
            finish_reason=str(reason) if reason else None,
            stop_reason=watcher.stop_string,
        )

    def abort(self, request_id):
        self.aborted.append(request_id)

    def stats(self):
        if not self.alive:
            raise EngineDeadError("dead")
        return {"num_requests_running": len(self.running)}

    def close(self, timeout=10.0):
        self.alive, self.closed = False, True
