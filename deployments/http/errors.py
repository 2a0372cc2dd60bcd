"""The only place that turns errors into HTTP responses.

    DLPError          status and code are class attributes, in dlp_core/errors.py and below
    ValidationError   pydantic's, for an invalid request body: from_validation()
    HTTPException     Starlette's, for an unknown path or a wrong method
    others            500 internal_error, logged with a traceback; the client sees no detail

The body has OpenAI's shape: {"error": {"message", "type", "param", "code"}}.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import ValidationError

from dlp_core.errors import DLPError, InvalidRequest, StepFailed

log = logging.getLogger("ray.serve")


class UnknownField(InvalidRequest):
    code = "unknown_parameter"


class MissingField(InvalidRequest):
    code = "missing_required_parameter"


class UnsupportedField(InvalidRequest):
    """A field of OpenAI's API that this server lacks: rejected by name rather than ignored."""

    code = "unsupported_parameter"


class BodyTooLarge(InvalidRequest):
    status = 413
    code = "request_too_large"


class BodyTooSlow(InvalidRequest):
    status = 408
    code = "request_timeout"


class Unauthorized(DLPError):
    """A missing, unknown or unauthorized API key. Reveals nothing about the keys that exist."""

    status = 401
    code = "invalid_api_key"


class UnknownRequest(DLPError):
    """The id of no reply to this caller, whether or not it is one to another."""

    status = 404
    code = "request_not_found"


class NotKept(DLPError):
    """What this server does not keep can be neither given nor read."""

    status = 404
    code = "not_kept"


class HTTPError(DLPError):
    """An unknown path or a wrong method; `status` and `code` follow Starlette's exception."""


_TYPES = {401: "authentication_error", 429: "rate_limit_error", 504: "timeout_error"}


def error_body(error: DLPError) -> dict[str, Any]:
    """`error` as a JSON object of OpenAI's shape."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def error_response(error: DLPError) -> JSONResponse:
    """The HTTP response for `error`; `retry_after` becomes a Retry-After header in whole seconds, rounded up."""
    headers = {} if error.retry_after is None else {"retry-after": str(max(1, math.ceil(error.retry_after)))}
    if isinstance(error, StepFailed):
        headers["x-should-retry"] = "false"  # OpenAI's clients retry any other 500
    if error.status == Unauthorized.status:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error_body(error), status_code=error.status, headers=headers)


def as_api_error(error: Exception) -> DLPError:
    """`error` as a DLPError; an unexpected error is logged here and becomes an internal error."""
    if isinstance(error, DLPError):
        return error
    log.error("unexpected error", exc_info=error)
    return DLPError("internal error; the server's log has the details")


def unknown_url(request_line: str) -> HTTPError:
    """The error for `request_line` ("GET /path") if the API has no such route."""
    error = HTTPError(f"{request_line} is not part of this API; GET /openapi.json lists the routes")
    error.status, error.code = 404, "unknown_url"
    return error


def unknown_field(param: str | None) -> UnknownField:
    return UnknownField(f"unknown field {param!r}; remove it", param=param)


def from_validation(error: ValidationError) -> InvalidRequest:
    """The first problem pydantic found in a request body, with the field's path, such as `dlp.adapters.0.weight`."""
    first = error.errors(include_url=False)[0]
    field = first.get("ctx", {}).get("field")
    param = ".".join(str(part) for part in (*first["loc"], *([field] if field else ()))) or None
    if first["type"] == "extra_forbidden":
        return unknown_field(param)
    if first["type"] == "missing":
        return MissingField(f"field {param!r} is missing", param=param)
    if first["type"] == "unsupported_parameter":
        return UnsupportedField(f"{param}: {first['msg']}", param=param)
    if param is None:
        return InvalidRequest(f"the request body is not a JSON object of the documented shape: {first['msg']}")
    return InvalidRequest(f"{param}: {first['msg']}", param=param)
