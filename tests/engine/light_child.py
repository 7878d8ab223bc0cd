"""A child without a model that starts in an instant, for what a parent must do about children: ``model`` says how it
behaves, and every call is answered with its own prompt or with the fault that the prompt's first token names."""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path

from paceline.core.outputs import CompletionDelta, RequestMetrics, StreamUpdate
from paceline.engine.facts import EngineFacts
from paceline.engine.process.link import Link, framed
from paceline.engine.process.messages import (
    AskStats,
    Beat,
    Generate,
    Loaded,
    NotLoaded,
    Refused,
    StatsTold,
    Updated,
    decode_order,
    encode,
)

ECHO, GARBAGE, OVERSIZED, EXIT, MUTE, UNTYPED, UNKNOWN, REFUSE, FOREIGN = range(9)
RAW = {
    GARBAGE: framed(b"\xc1" * 9),
    OVERSIZED: struct.pack(">I", 2**32 - 1) + b"x",
    UNTYPED: framed(b"\x93\xa7Updated\xa1x\x80"),
    UNKNOWN: framed(b"\x91\xa6System"),
}


def facts(path: str) -> EngineFacts:
    return EngineFacts(
        model_name="light",
        model_path=path,
        max_model_len=100,
        vocab_size=320,
        dtype="none",
        device="none",
        num_threads=1,
        kv_cache_dtype="none",
        cache="none",
        num_pages=0,
        page_size=1,
        max_num_seqs=1,
        scheduling_policy="none",
        speculative_method=None,
        num_speculative_tokens=0,
        verifier=None,
    )


def load(link: Link, model: str) -> None:
    """``model`` is a directory; files in it say what goes wrong."""
    directory = Path(model)
    if (directory / "refuses").exists():
        link.send(encode(NotLoaded("ConfigError", (directory / "refuses").read_text())))
        os._exit(2)
    if (directory / "dies").exists():
        os._exit(9)
    if (directory / "chatters").exists():
        link.send(encode(Beat(0.0)))
    while (directory / "hangs").exists():
        time.sleep(0.01)
    time.sleep(float(os.environ.get("LIGHT_CHILD_LOADS", "0")))
    link.send(encode(Loaded(facts(model))))


def answer(link: Link, order: Generate) -> None:
    what = order.prompt_token_ids[0]
    if what in RAW:
        link.send(RAW[what])
    elif what == EXIT:
        os._exit(5)
    elif what == MUTE:
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == REFUSE:
        link.send(encode(Refused(order.call, "no", "prompt", "context_length_exceeded")))
    elif what == FOREIGN:
        link.send(encode(Refused(order.call + 1000, "for nobody")) + encode(StatsTold(10**6, {})))
    else:
        delta = CompletionDelta(0, "", order.prompt_token_ids, finish_reason="stop")
        link.send(encode(Updated(order.call, StreamUpdate(order.request_id, [delta], RequestMetrics()))))


def beat(link: Link, seconds: float) -> None:
    while True:
        time.sleep(seconds)
        link.send(encode(Beat(0.0)))


def main() -> None:
    link = Link(socket.socket(fileno=int(sys.argv[1])))
    orders = [decode_order(frame) for frame in link.receive()]
    load(link, orders.pop(0).model)
    threading.Thread(target=beat, args=(link, 0.05), daemon=True).start()
    try:
        while True:
            for order in map(decode_order, link.receive()):
                if isinstance(order, Generate):
                    answer(link, order)
                elif isinstance(order, AskStats):
                    link.send(encode(StatsTold(order.number, {"answered": True})))
    except EOFError:
        os._exit(0)


if __name__ == "__main__":
    main()
