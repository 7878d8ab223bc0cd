"""The real child with planted faults: a call whose prompt begins with one of these pairs sets one off in a step."""

from __future__ import annotations

import os
import runpy
import signal
import threading
import time

from paceline.engine.engine import Engine
from paceline.engine.loop import EngineLoop
from paceline.engine.process import child
from tests.support.panicking import panic

# The first of each pair, a special token, begins no other prompt.
SLOW, STUCK, SEGFAULT, RAISE, PANIC = ((2, code) for code in range(40, 45))
# These strike where calls are taken: that thread, the one that beats, one that somebody else started.
PANIC_ON_ORDERS, PANIC_ON_BEATS, RAISE_ELSEWHERE = ((2, code) for code in range(50, 53))
_beats_panic = threading.Event()


def _strike(token: tuple[int, ...]) -> None:
    if token == SLOW:
        time.sleep(0.02)
    elif token == STUCK:
        time.sleep(3600)
    elif token == SEGFAULT:
        os.kill(os.getpid(), signal.SIGSEGV)
    elif token == RAISE:
        raise RuntimeError("planted")
    elif token == PANIC:
        raise panic()


def _strike_others(token: tuple[int, ...]) -> None:
    if token == PANIC_ON_ORDERS:
        raise panic()
    if token == PANIC_ON_BEATS:
        _beats_panic.set()
    elif token == RAISE_ELSEWHERE:
        threading.Thread(target=lambda: {}["planted"], daemon=True).start()


class FaultyLoop(EngineLoop):
    def check(self, prompt, params, *, request_id, options):
        _strike_others(tuple(prompt[:2]))
        return super().check(prompt, params, request_id=request_id, options=options)

    @property
    def busy_seconds(self):
        if _beats_panic.is_set():
            raise panic()
        return super().busy_seconds


def main() -> None:
    step = Engine.step

    def faulty(self):
        for request in [*self.scheduler.running, *self.scheduler.waiting]:
            _strike(tuple(request.prompt_token_ids[:2]))
        return step(self)

    Engine.step = faulty
    child.EngineLoop = FaultyLoop
    runpy.run_module("paceline.engine.process", run_name="__main__")


if __name__ == "__main__":
    main()
