"""The thread that runs the engine for asynchronous callers: requests in, stream updates out, aborts at any time."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitedTooLongError
from typing import Any

from paceline.core.call import CallOptions
from paceline.core.outputs import StreamUpdate
from paceline.core.params import SamplingParams
from paceline.core.request import Group
from paceline.engine.input_processor import DEFAULT_OPTIONS
from paceline.engine.llm import LLM
from paceline.engine.loop import EngineLoop, dead
from paceline.engine.patience import STALL_SECONDS, STATS_SECONDS, stalled
from paceline.engine.updates import UpdateStream


class EngineWorker:
    """Owns an ``LLM`` on a thread of its own; every public method may be called from any event loop."""

    restarts = 0

    def __init__(self, llm: LLM, *, stall_seconds: float = STALL_SECONDS) -> None:
        self.llm, self.facts, self.tokenizer = llm, llm.facts, llm.tokenizer
        self.model_name, self.max_model_len = self.facts.model_name, self.facts.max_model_len
        self.vocab_size, self.context_overflow = self.facts.vocab_size, self.facts.context_overflow
        self.loop = EngineLoop(llm, stall_seconds=stall_seconds)
        self._thread = threading.Thread(target=self.loop.run, name="paceline-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self.loop.alive

    @property
    def stalled(self) -> bool:
        return self.loop.stalled

    @property
    def ready(self) -> bool:
        return self.alive and not self.stalled

    def generate(
        self,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        request_id: str,
        options: CallOptions = DEFAULT_OPTIONS,
    ) -> AsyncGenerator[StreamUpdate]:
        """Streams a call's updates; closing the iterator early aborts the call.

        Raises:
            InvalidRequestError: at once, if the call is invalid.
            EngineDeadError: at once or while streaming, if the engine has stopped.
        """
        if not self.alive:
            raise dead()
        group = self.loop.check(prompt_token_ids, params, request_id=request_id, options=options)
        return self._stream(group)

    async def _stream(self, group: Group) -> AsyncGenerator[StreamUpdate]:
        updates = UpdateStream()
        self.loop.submit(group, updates.put)
        over = False
        try:
            while not over:
                try:
                    update = await updates.take()
                except Exception:
                    over = True
                    raise
                over = update.finished
                yield update
        finally:
            if not over:
                self.abort(group.id)

    def abort(self, request_id: str) -> None:
        """Ends a call, if it still runs, and gives back its pages before the next step."""
        self.loop.abort(request_id)

    def stats(self) -> dict[str, Any]:
        """Counters and gauges; waits for the step that runs, for at most ``STATS_SECONDS``.

        Raises:
            EngineStalledError: it is stuck.
        """
        found: Future[dict[str, Any]] = Future()
        if not self.loop.soon(lambda: found.set_result(self.loop.stats())):
            return self.loop.stats()
        try:
            return found.result(min(self.loop.stall_seconds, STATS_SECONDS))
        except WaitedTooLongError:
            raise stalled() from None

    def close(self, timeout: float = 10.0) -> None:
        """Aborts what runs and joins the thread; waits at most ``timeout`` seconds."""
        self.loop.stop()
        self._thread.join(timeout)
