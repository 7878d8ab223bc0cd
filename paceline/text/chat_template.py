"""Knows how a model's Jinja chat template is rendered, within bounds; knows nothing of tokens.

A template comes with the model, so it is code from elsewhere: it runs in Jinja's immutable sandbox, cannot load
other templates, and is held to a size and a time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import jinja2
from jinja2 import Template, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer

from paceline.core.errors import InvalidRequestError
from paceline.text.bounded_jinja import MAX_CHARACTERS, BoundedEnvironment

RENDER_SECONDS = 5.0


class _Generation(Extension):
    """``{% generation %}`` marks what an assistant wrote, for training; here only its body counts."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Instrument(NodeTransformer):
    """Puts a look at the clock into every loop and a size check on every ``~``."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 (Jinja's visitor names)
        self.generic_visit(node)
        tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:  # noqa: N802
        self.generic_visit(node)
        return nodes.Call(nodes.EnvironmentAttribute("join"), node.nodes, [], None, None, lineno=node.lineno)


class ChatTemplate:
    """One template; compiled at its first use. Thread-safe."""

    def __init__(self, source: str, *, max_characters: int = MAX_CHARACTERS, seconds: float = RENDER_SECONDS) -> None:
        self.source = source
        self._max_characters, self._seconds = max_characters, seconds

    def render(self, context: Mapping[str, Any]) -> str:
        """The prompt's text. ``context`` holds ``messages``, ``add_generation_prompt``, ``bos_token``, ...

        Raises:
            InvalidRequestError: (param "messages") the template is broken, refuses the messages, or passes a bound.
        """
        try:
            template, environment = self._compiled
            with environment.limits(self._max_characters, self._seconds):
                return environment.concat(list(template.generate(**context)))
        except jinja2.TemplateError as error:
            raise InvalidRequestError(f"the chat template refused: {error.message}", param="messages") from None
        except Exception as error:  # A template can raise whatever its operations raise.
            raise InvalidRequestError(f"the chat template failed ({type(error).__name__})", param="messages") from None

    @cached_property
    def _compiled(self) -> tuple[Template, BoundedEnvironment]:
        environment = BoundedEnvironment(extensions=["jinja2.ext.loopcontrols", _Generation])
        environment.filters["tojson"] = _tojson
        environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        tree = _Instrument().visit(environment.parse(self.source))
        code = environment.compile(tree)
        return Template.from_code(environment, code, environment.make_globals(None)), environment


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
