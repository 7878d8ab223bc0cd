"""Knows the spellings of one request: absolute targets, trailing slashes, HEAD where GET is; nothing of who may ask."""

from __future__ import annotations

import re

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ABSOLUTE = re.compile(r"https?://([^/?#@\s]+)(/.*)?\Z", re.IGNORECASE | re.DOTALL)


def to_origin_form(scope: Scope) -> None:
    """Turns ``GET http://host/path``, as clients of proxies write it, into ``/path`` of the Host that it names.

    The target counts and not the Host header, as RFC 9112 says, so that it is the target's that has to be allowed.
    """
    found = _ABSOLUTE.match(scope["path"])
    if found is None:
        return
    scope["path"] = found[2] or "/"
    if scope.get("raw_path"):
        scope["raw_path"] = re.sub(rb"\A[A-Za-z]+://[^/]*", b"", scope["raw_path"]) or b"/"
    others = [(name, value) for name, value in scope["headers"] if name != b"host"]
    scope["headers"] = [(b"host", found[1].encode("latin-1", "replace")), *others]


class Spellings:
    """Behind the doors, which see a request as it came: takes trailing slashes off, and answers HEAD as GET."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_head = scope["method"] == "HEAD"

        async def send_spelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("allow") == "GET":
                    headers["Allow"] = "GET, HEAD"
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        path = scope["path"].rstrip("/") or "/"
        method = "GET" if is_head else scope["method"]
        inside = {**scope, "path": path, "method": method}
        try:
            await self.app(inside, receive, send_spelled)
        finally:
            scope["route"] = inside.get("route")  # whoever counts requests by endpoint stands outside
