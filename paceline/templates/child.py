"""The process that renders one template which has no bound of its own: limited by the system, and killed if need be.

It reads contexts from the socket that is its standard input, and ends when the other end is closed.
"""

from __future__ import annotations

import math
import resource
import socket
from functools import cache
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from paceline.templates.frames import receive, send
from paceline.templates.language import OPTIONS, add_names

MEMORY = 2**30
"""Bytes of address space."""


@cache
def _compiled(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(**OPTIONS)
    add_names(environment)
    return environment.from_string(source)


def _answer(source: str, context: dict[str, Any], max_characters: int) -> dict[str, str]:
    try:
        text = _compiled(source).render(context)
    except jinja2.TemplateError as error:
        return {"refused": (error.message or "")[:max_characters]}
    except Exception as error:  # A template can raise whatever its operations raise.
        return {"failed": type(error).__name__}
    return {"text": text} if len(text) <= max_characters else {"refused": "it makes too long a text"}


def _limit(seconds: float) -> None:
    """For who is left alone in the middle of an endless rendering: nobody kills it then."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    end = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (end, resource.RLIM_INFINITY))


def main() -> None:
    for limit, value in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        resource.setrlimit(limit, (value, value))
    with socket.socket(fileno=0) as end:
        send(end, "ready")
        try:
            source, max_characters, seconds = receive(end)
            while True:
                context = receive(end)
                _limit(seconds)
                send(end, _answer(source, context, max_characters))
        except EOFError:
            return


if __name__ == "__main__":
    main()
