"""Reads bodies within what one client may ask of the server."""

from __future__ import annotations

import json
from typing import NoReturn

from starlette.requests import Request

from paceline.server.errors import ApiError


async def read_body(request: Request, limit: int) -> bytes:
    """The request's body; stops reading at the limit, whatever Content-Length says.

    Raises:
        ApiError: 413 over the limit, 415 for another content type than JSON.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "the body must be JSON\nSend the header Content-Type: application/json.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > limit):
        raise _too_large(limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def _too_large(limit: int) -> ApiError:
    # The rest of the body is not read, so the connection cannot be used again.
    return ApiError(413, f"the body is over the limit of {limit} bytes", headers={"Connection": "close"})


def parse_json(body: bytes) -> object:
    """Strict JSON: no NaN, no infinities, UTF-8 only.

    Raises:
        ApiError: 400.
    """
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse)
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not UTF-8") from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None
    except ValueError as error:
        # Also raised for integers of thousands of digits.
        detail = error.msg if isinstance(error, json.JSONDecodeError) else "a number is out of range"
        raise ApiError(400, f"the body is not JSON: {detail}") from None


def _refuse(_constant: str) -> NoReturn:
    raise ValueError
