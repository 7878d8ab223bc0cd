"""Knows what every request gets first and last: an id, bounds on its headers, one line in the log."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paceline.core.panics import is_panic
from paceline.server.admission import Limiter, Visit
from paceline.server.errors import ApiError, response_to
from paceline.server.targets import to_origin_form

access_log = logging.getLogger("paceline.access")

_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PROBES = frozenset({"/health", "/ready", "/metrics"})
"""Asked every few seconds by machines, so their lines are only for debugging."""
IGNORED_FIELDS = "X-Ignored-Fields"
MOST_FIELDS = 16
_SAFE_FIELD = re.compile(r"[A-Za-z0-9._-]{1,64}")
_VERSIONS = frozenset({"1.0", "1.1", "2", "3"})
_VISIT = "paceline.visit"


def visit_of(scope: Scope) -> Visit:
    visit: Visit = scope[_VISIT]
    return visit


class Reception:
    """The outermost middleware. Nothing that an endpoint raises gets past it."""

    def __init__(self, app: ASGIApp, admission: Limiter, answered: Callable[[Scope, int], None]) -> None:
        """``answered`` is told of each request in the end, with its status: 499 where the client had left."""
        self.app, self.admission, self.answered = app, admission, answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            to_origin_form(scope)
            await self._serve(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        visit = scope[_VISIT] = Visit(_request_id(scope), self.admission)
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = visit.id
                if visit.ignored_fields:
                    headers[IGNORED_FIELDS] = _listed(visit.ignored_fields)
            await send(message)

        try:
            error = _framing_error(scope, self.admission.limits.max_header_bytes)
            app = self.app if error is None else response_to(error)
            await app(scope, receive, send_marked)
        except BaseException as error:
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            response = response_to(error, visit.id)
            # Half an answer cannot be mended; the server closes the connection, and the client sees that.
            if not status:
                await response(scope, receive, send_marked)
        finally:
            visit.close()
            self.answered(scope, status or 499)
            _log(scope, visit, status or 499)


def _listed(names: list[str]) -> str:
    """Names that came from a client, as a header can carry them: so many, so long, so spelled."""
    shown = [name if _SAFE_FIELD.fullmatch(name) else "?" for name in dict.fromkeys(names)]
    more = [f"and {len(shown) - MOST_FIELDS} more"] if len(shown) > MOST_FIELDS else []
    return ", ".join([*shown[:MOST_FIELDS], *more])


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _SAFE_ID.fullmatch(given) else uuid.uuid4().hex


def _framing_error(scope: Scope, max_bytes: int) -> ApiError | None:
    headers = scope["headers"]
    if scope["http_version"] not in _VERSIONS:
        return ApiError(505, "this version of HTTP is not spoken here", headers={"Connection": "close"})
    size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    size += sum(len(name) + len(value) + 4 for name, value in headers)
    if size > max_bytes:
        return ApiError(431, f"the headers are over the limit of {max_bytes} bytes", headers={"Connection": "close"})
    names = [name for name, _ in headers]
    if b"transfer-encoding" in names and b"content-length" in names:
        # Two servers in a row may disagree about where such a request ends.
        why = "a request has either Content-Length or Transfer-Encoding"
        return ApiError(400, why, headers={"Connection": "close"})
    return None


def _log(scope: Scope, visit: Visit, status: int) -> None:
    """JSON, so that no path can look like a line of its own; no query, as that may hold anything."""
    level = logging.DEBUG if scope["path"] in _PROBES else logging.INFO
    if access_log.isEnabledFor(level):
        line = {
            "request_id": visit.id,
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": status,
            "seconds": round(time.monotonic() - visit.began, 4),
            "prompt_tokens": visit.num_prompt_tokens,
            "output_tokens": visit.num_output_tokens,
        }
        access_log.log(level, "%s", json.dumps(line))
