"""Knows how every failure looks to a client: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from paceline.core.errors import EngineDeadError, EngineStalledError, InvalidRequestError, PacelineError

log = logging.getLogger(__name__)

DEAD_RETRY = 30
"""Seconds after which another attempt is suggested while nobody knows whether the engine comes back."""
_TYPES = {
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}
_CODES = {"model_not_found": 404}


class ApiError(PacelineError):
    """A failure with an HTTP status of its own."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers


def as_api_error(error: BaseException, request_id: str = "") -> ApiError:
    """What a client is told of ``error``; of an unexpected one nothing but that it happened.

    The log gets where that was, under the request's id.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidRequestError):
        return ApiError(_CODES.get(error.code or "", 400), str(error), param=error.param, code=error.code)
    if isinstance(error, EngineStalledError):
        again = {"Retry-After": str(DEAD_RETRY)}
        return ApiError(503, "a step of the engine does not end", code="engine_stalled", headers=again)
    if isinstance(error, EngineDeadError):
        again = {"Retry-After": str(error.retry_after or DEAD_RETRY)}
        return ApiError(503, "the engine has stopped", code="engine_dead", headers=again)
    if isinstance(error, ValidationError):
        return _of_validation(error)
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, RequestValidationError):
        return ApiError(400, "a part of the URL is not valid")
    # The frames without the message, which may quote a prompt.
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("request %s: unexpected %s\n%s", request_id, type(error).__name__, frames)
    return ApiError(500, "internal server error")


def payload(error: ApiError) -> dict[str, Any]:
    kind = _TYPES.get(error.status, "invalid_request_error")
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}


def _of_validation(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InvalidRequestError):
        return as_api_error(cause)
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        message = f"{where} is not a known field"
    else:
        message = f"{where}: {first['msg'].removeprefix('Value error, ')}" if where else first["msg"]
    return ApiError(400, message.removeprefix("Value error, "), param=str(first["loc"][0]) if first["loc"] else None)


def response_to(error: BaseException, request_id: str = "") -> Response:
    described = as_api_error(error, request_id)
    return JSONResponse(payload(described), described.status, headers=described.headers)


async def _respond(_request: Request, error: Exception) -> Response:
    return response_to(error)


async def _gone(_request: Request, _error: Exception) -> Response:
    # Nobody reads it; 499 is what logs call a client that went away.
    return Response(status_code=499)


def install(app: FastAPI) -> None:
    """Makes the app answer every failure in this shape."""
    for kind in (PacelineError, ValidationError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _respond)
    app.add_exception_handler(ClientDisconnect, _gone)
