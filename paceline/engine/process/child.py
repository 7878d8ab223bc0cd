"""The child: loads the model, runs the engine's loop, carries out the parent's orders, and ends when that is gone."""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from paceline.core.errors import PacelineError
from paceline.engine.llm import LLM
from paceline.engine.loop import EngineLoop
from paceline.engine.process.link import Link, LinkError
from paceline.engine.process.messages import (
    Abort,
    AskStats,
    Beat,
    Generate,
    Loaded,
    NotLoaded,
    Order,
    Refused,
    Start,
    StatsTold,
    decode_order,
    encode,
)
from paceline.engine.process.outbox import Outbox, refusal
from paceline.engine.warm_up import warm_up

log = logging.getLogger(__name__)

DONE, STOPPED, NOT_LOADED, MISUNDERSTOOD = 0, 1, 2, 3
"""Exit codes: the parent hung up; a step raised; the model cannot be loaded; the parent sent no order."""


class Child:
    """Between the link to the parent and the loop that runs the engine."""

    def __init__(self, link: Link, loop: EngineLoop, outbox: Outbox) -> None:
        self.link, self.loop, self.outbox = link, loop, outbox

    def obey(self) -> NoReturn:
        """Carries out orders until the parent hangs up; this process is of no use then."""
        try:
            while True:
                for frame in self.link.receive():
                    self._carry_out(decode_order(frame))
        except EOFError:
            end(DONE)
        except LinkError as error:
            log.error("%s", error)
            end(MISUNDERSTOOD)

    def beat(self, seconds: float) -> NoReturn:
        while True:
            time.sleep(seconds)
            if not self.link.full:
                self.link.send(encode(Beat(self.loop.busy_seconds)))

    def _carry_out(self, order: Order | Refused) -> None:
        if isinstance(order, Generate):
            self._begin(order)
        elif isinstance(order, Refused):
            self.link.send(encode(order))
        elif isinstance(order, Abort):
            self.loop.abort(order.request_id)
        elif isinstance(order, AskStats):
            self._tell_stats(order.number)
        else:
            raise LinkError("the engine's parent started it twice")

    def _begin(self, order: Generate) -> None:
        try:
            group = self.loop.check(
                order.prompt_token_ids, order.params, request_id=order.request_id, options=order.options
            )
        except Exception as error:  # whatever is wrong with a call, it is that call's
            if not isinstance(error, PacelineError):
                log.exception("a call could not be taken")
            self.link.send(encode(refusal(order.call, error)))
            return
        self.loop.submit(group, lambda item: self.outbox.put(order.call, item))

    def _tell_stats(self, number: int) -> None:
        self.loop.soon(lambda: self.link.send(encode(StatsTold(number, self.loop.stats()))))


def end(code: int) -> NoReturn:
    """Ends the process at once, whatever other threads do."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    finally:  # also where they lead to a device that is full
        os._exit(code)


def _load(link: Link, start: Start) -> LLM:
    try:
        return LLM(start.model, speculative_config=start.speculative_config, **start.options)
    except PacelineError as error:
        link.send(encode(NotLoaded(type(error).__name__, str(error))))
        end(NOT_LOADED)


def _in_thread(name: str, work: Callable[[], object]) -> None:
    threading.Thread(target=work, name=name, daemon=True).start()


def _end_with(died: threading.ExceptHookArgs) -> NoReturn:
    """Without one of its threads this process would look alive and answer nobody: its parent starts another."""
    try:
        name = died.thread.name if died.thread is not None else "a thread"
        log.error("%s ended", name, exc_info=died.exc_value)
    finally:
        end(STOPPED)


def main(descriptor: int) -> NoReturn:
    """Runs until the parent hangs up; ``descriptor`` is this end of the link."""
    faulthandler.enable()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    threading.excepthook = _end_with
    try:
        _run(descriptor)
    except BaseException:  # an interpreter that ends in good order waits for others, and may do so for ever
        log.exception("the engine's process ended")
        end(STOPPED)


def _run(descriptor: int) -> NoReturn:
    outbox = Outbox()
    link = outbox.link = Link(socket.socket(fileno=descriptor), drained=outbox.flush)
    try:
        first, *more = (decode_order(frame) for frame in link.receive())
    except EOFError:
        end(DONE)
    if not isinstance(first, Start) or more:
        raise LinkError("the engine's parent must start it first, and then wait")
    llm = _load(link, first)
    llm.input_processor.num_before = first.num_before
    warm_up(llm)
    loop = EngineLoop(llm, after_step=outbox.flush)
    child = Child(link, loop, outbox)
    _in_thread("paceline-orders", child.obey)
    _in_thread("paceline-beats", lambda: child.beat(first.beat_seconds))
    link.send(encode(Loaded(llm.facts)))
    loop.run()
    end(STOPPED)
