"""The real child with planted faults: a call whose prompt begins with one of these tokens sets one off in a step."""

from __future__ import annotations

import os
import signal
import sys
import time

from paceline.engine.engine import Engine
from paceline.engine.process import child

SLOW, STUCK, SEGFAULT, EXIT, RAISE, SLOW_LOAD = 40, 41, 42, 43, 44, 45
EXIT_CODE = 7


def _strike(token: int) -> None:
    if token == SLOW:
        time.sleep(0.02)
    elif token == STUCK:
        time.sleep(3600)
    elif token == SEGFAULT:
        os.kill(os.getpid(), signal.SIGSEGV)
    elif token == EXIT:
        os._exit(EXIT_CODE)
    elif token == RAISE:
        raise RuntimeError("planted")


def main() -> None:
    step = Engine.step

    def faulty(self):
        for request in [*self.scheduler.running, *self.scheduler.waiting]:
            _strike(request.prompt_token_ids[0])
        return step(self)

    Engine.step = faulty
    child.main(int(sys.argv[1]))


if __name__ == "__main__":
    main()
