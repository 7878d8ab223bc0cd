"""Knows how a request's body is read and parsed within bounds; nothing of what it means."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, NoReturn

from starlette.requests import Request

from paceline.core.service_config import Limits
from paceline.server.errors import ApiError

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


async def read_body(request: Request, limits: Limits) -> bytes:
    """The request's body; stops reading at the limit, whatever Content-Length says.

    Raises:
        ApiError: 413 over the limit, 408 if it does not come in time, 415 for another content type than JSON.
    """
    kinds = request.headers.getlist("content-type")
    if len(kinds) != 1 or kinds[0].partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "the body must be JSON\nSend the header Content-Type: application/json.")
    codings = {one.strip().lower() for given in request.headers.getlist("content-encoding") for one in given.split(",")}
    if codings - {"", "identity"}:
        plain = {"Accept-Encoding": "identity"}
        raise ApiError(415, "the body is compressed\nSend it as it is, without Content-Encoding.", headers=plain)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > limits.max_body_bytes):
        raise _too_large(limits)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.max_body_bytes:
                    raise _too_large(limits)
    except TimeoutError:
        raise ApiError(
            408, f"the body did not come within {limits.body_seconds:g} s", headers={"Connection": "close"}
        ) from None
    return bytes(body)


def _too_large(limits: Limits) -> ApiError:
    # The rest of the body is not read, so the connection cannot be used again.
    return ApiError(
        413, f"the body is over the limit of {limits.max_body_bytes} bytes", headers={"Connection": "close"}
    )


def parse_json(body: bytes) -> object:
    """Strict JSON: UTF-8 only, no NaN, no infinities, no name twice in an object, no lone surrogates.

    A byte order mark may lead.

    Raises:
        ApiError: 400.
    """
    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse, object_pairs_hook=_object)
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not UTF-8") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        # Also raised for integers of thousands of digits.
        detail = error.msg if isinstance(error, json.JSONDecodeError) else "a number is out of range"
        raise ApiError(400, f"the body is not JSON: {detail}") from None
    if _SURROGATE.search(body):
        _check_text(value)
    return value


def _too_deep() -> ApiError:
    return ApiError(400, "the body is nested too deeply")


def _refuse(_constant: str) -> NoReturn:
    raise ValueError


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers disagree about which of two equal names counts, so a filter before us may have seen the other."""
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ApiError(400, "an object in the body has the same name twice")
    return names


def _check_text(value: object) -> None:
    """Half of a surrogate pair is no character and has no UTF-8."""
    for name, part in value.items() if isinstance(value, dict) else [(None, value)]:
        try:
            json.dumps([name, part], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            param = name if name is not None and name.isprintable() else None
            raise ApiError(400, "the body has half of a surrogate pair, which is no text", param=param) from None
        except RecursionError:
            raise _too_deep() from None
