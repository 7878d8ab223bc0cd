"""Knows how a model's Jinja chat template is rendered, within bounds; knows nothing of tokens.

A template comes with the model, so it is code from elsewhere: it runs in Jinja's immutable sandbox, cannot load
other templates, and is held to a size and a time. What published templates use is counted operation by operation
(``bounded``); a template that uses anything else is rendered in a process that can be killed (``worker``).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import jinja2
from jinja2 import Template

from paceline.core.errors import InvalidRequestError
from paceline.templates.bounded import BoundedEnvironment
from paceline.templates.budget import OutsideError
from paceline.templates.worker import RenderingError, Worker

MAX_CHARACTERS = 8_000_000
RENDER_SECONDS = 5.0
MAX_MESSAGE = 500
"""Characters of what a template says when it refuses messages."""


class ChatTemplate:
    """One template; compiled at its first use. Thread-safe."""

    def __init__(self, source: str, *, max_characters: int = MAX_CHARACTERS, seconds: float = RENDER_SECONDS) -> None:
        self.source = source
        self._limits = (max_characters, seconds)
        self._worker = Worker(source, *self._limits)
        self.outside = False
        """It does what has no bound in this process, so it is rendered in another."""

    def render(self, context: Mapping[str, Any]) -> str:
        """The prompt's text. ``context`` holds ``messages``, ``add_generation_prompt``, ``bos_token``, ...

        Raises:
            InvalidRequestError: (param "messages") the template is broken, refuses the messages, or passes a bound.
        """
        try:
            return self._render(context)
        except jinja2.TemplateError as error:
            raise InvalidRequestError(f"the chat template refused: {_cut(error.message)}", param="messages") from None
        except RenderingError as error:
            raise InvalidRequestError(f"the chat template failed ({error})", param="messages") from None
        except Exception as error:  # A template can raise whatever its operations raise.
            raise InvalidRequestError(f"the chat template failed ({type(error).__name__})", param="messages") from None

    def _render(self, context: Mapping[str, Any]) -> str:
        if not self.outside:
            try:
                template, environment = self._compiled
                with environment.limits(*self._limits):
                    return environment.concat(list(template.generate(**context)))
            except OutsideError as error:
                self.outside = True
                error.__traceback__ = None  # Jinja's own frames hold the error, whose traceback holds this one.
        return self._worker.render(context)

    @cached_property
    def _compiled(self) -> tuple[Template, BoundedEnvironment]:
        environment = BoundedEnvironment()
        return environment.bounded(self.source), environment


def _cut(message: str | None) -> str:
    message = message or ""
    return message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}..."
