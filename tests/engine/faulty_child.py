"""The real child with planted faults: a call whose prompt begins with one of these pairs sets one off in a step."""

from __future__ import annotations

import os
import runpy
import signal
import time

from paceline.engine.engine import Engine

# The first of each pair, a special token, begins no other prompt.
SLOW, STUCK, SEGFAULT, RAISE = ((2, code) for code in range(40, 44))


def _strike(token: tuple[int, ...]) -> None:
    if token == SLOW:
        time.sleep(0.02)
    elif token == STUCK:
        time.sleep(3600)
    elif token == SEGFAULT:
        os.kill(os.getpid(), signal.SIGSEGV)
    elif token == RAISE:
        raise RuntimeError("planted")


def main() -> None:
    step = Engine.step

    def faulty(self):
        for request in [*self.scheduler.running, *self.scheduler.waiting]:
            _strike(tuple(request.prompt_token_ids[:2]))
        return step(self)

    Engine.step = faulty
    runpy.run_module("paceline.engine.process", run_name="__main__")


if __name__ == "__main__":
    main()
