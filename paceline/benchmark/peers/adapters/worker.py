"""Runs one adapter as a process: jobs come as JSON lines on standard input, answers go as JSON lines to its output.

Started by file name (``python worker.py ADAPTER.py``) in an environment without Paceline. An adapter is a module with
``load(model, threads, settings)``, which returns an object with ``versions``, ``generate(prompts, max_tokens)`` and, if
it likes, ``close()``. Adapters import each other's helpers by bare name, as this file's directory is on the path.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import sys
import time
from typing import Any


def main(adapter: str) -> int:
    # The protocol has the real output for itself; what an engine prints goes to the error output.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(event: str, **values: Any) -> None:
        answers.write(json.dumps({"event": event, **values}) + "\n")
        answers.flush()

    engine: Any = None
    for line in sys.stdin:
        job = json.loads(line)
        try:
            if job["do"] == "load":
                # What was loaded before makes room first, through its own close() where dropping it is not enough.
                if hasattr(engine, "close"):
                    engine.close()
                engine = None
                gc.collect()
                engine = _module(adapter).load(job["model"], job["threads"], job["settings"])
                say("loaded", versions=engine.versions)
            elif job["do"] == "generate":
                started = time.perf_counter()
                tokens, steps = engine.generate(job["prompts"], job["max_tokens"])
                seconds = time.perf_counter() - started
                say("answers", seconds=seconds, token_ids=tokens, steps=[[t - started, n] for t, n in steps])
        except Exception as error:  # whatever another engine raises is a reason to report
            say("failed", reason=f"{type(error).__name__}: {error}")
    return 0


def _module(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("adapter", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
