"""What the server needs of an engine; ``EngineProcess`` and ``EngineWorker`` of the engine room are two."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from paceline.core.call import CallOptions
from paceline.core.outputs import StreamUpdate
from paceline.core.params import SamplingParams
from paceline.text import Tokenizer


class EngineClient(Protocol):
    """Generates for many callers at once; methods may be called from the event loop."""

    @property
    def model_name(self) -> str: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def max_model_len(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def context_overflow(self) -> str:
        """What becomes of a call that the context cannot hold, unless it says otherwise."""
        ...

    @property
    def ready(self) -> bool:
        """Loaded, warm, alive and not stalled: a call made now begins soon."""
        ...

    @property
    def stalled(self) -> bool:
        """There is work, and no step of it has ended for as long as the engine tolerates."""
        ...

    @property
    def alive(self) -> bool:
        """False while there is no engine: it has stopped for good, or is being restarted."""
        ...

    @property
    def restarts(self) -> int:
        """How often the engine was started anew after it had died."""
        ...

    def generate(
        self, prompt_token_ids: list[int], params: SamplingParams, *, request_id: str, options: CallOptions
    ) -> AsyncGenerator[StreamUpdate]:
        """Streams a call's updates; the last one holds the metrics.

        Raises:
            InvalidRequestError: before the first update, if the call is invalid.
            EngineDeadError: at any time, if the engine has stopped; ``retry_after`` tells whether it comes back.
        """
        ...

    def abort(self, request_id: str) -> None:
        """Ends a call; nothing happens if it is over or unknown."""
        ...

    def stats(self) -> dict[str, Any]:
        """Counters and gauges; may wait for a step, so it is called off the event loop.

        Raises:
            EngineStalledError: its step does not end, or takes longer than it is waited for.
            EngineDeadError: there is no engine to ask.
        """
        ...

    def close(self, timeout: float = 10.0) -> None:
        """Aborts what runs and ends the engine, within about ``timeout`` seconds; called off the event loop."""
        ...
