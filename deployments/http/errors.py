"""The one place where an error becomes an HTTP answer.

    ours       class -> status and code: the attributes in dlp_core/errors.py and those below
    pydantic's what is wrong with a request body: from_validation()
    HTTP's     unknown path, wrong method: Starlette's HTTPException
    the rest   500 internal_error, logged with its traceback; the client sees no detail

The body is OpenAI's: {"error": {"message", "type", "param", "code"}}.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import ValidationError

from dlp_core.errors import DLPError, InvalidRequest

log = logging.getLogger("ray.serve")


class UnknownField(InvalidRequest):
    code = "unknown_parameter"


class MissingField(InvalidRequest):
    code = "missing_required_parameter"


class UnsupportedField(InvalidRequest):
    """A field OpenAI knows and this server does not: refused by name rather than ignored."""

    code = "unsupported_parameter"


class BodyTooLarge(InvalidRequest):
    status = 413
    code = "request_too_large"


class Unauthorized(DLPError):
    """No API key, an unknown one, or one that may not do this. Says nothing about the keys there are."""

    status = 401
    code = "invalid_api_key"


class HTTPFault(DLPError):
    """An unknown path or a wrong method; `status` and `code` follow Starlette's exception."""


_TYPES = {401: "authentication_error", 429: "rate_limit_error", 504: "timeout_error"}


def body_of(error: DLPError) -> dict[str, Any]:
    """The OpenAI-shaped JSON object of `error`."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def answer(error: DLPError) -> JSONResponse:
    """The HTTP answer of `error`; `retry_after` becomes a Retry-After header in whole seconds."""
    headers = {} if error.retry_after is None else {"retry-after": str(max(1, math.ceil(error.retry_after)))}
    if error.status == Unauthorized.status:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(body_of(error), status_code=error.status, headers=headers)


def from_any(error: Exception) -> DLPError:
    """`error` as one of ours; what nobody foresaw is logged here and becomes an internal error."""
    if isinstance(error, DLPError):
        return error
    log.error("unforeseen error", exc_info=error)
    return DLPError("internal error; the server's log has the details")


def unknown_url(what: str) -> HTTPFault:
    """The answer to `what` ("GET /path") where nothing is."""
    fault = HTTPFault(f"{what} is not part of this API; GET /openapi.json lists what is")
    fault.status, fault.code = 404, "unknown_url"
    return fault


def from_validation(error: ValidationError) -> InvalidRequest:
    """The first thing pydantic found wrong with a request body, named by its path such as `dlp.adapters.0.weight`."""
    first = error.errors(include_url=False)[0]
    field = first.get("ctx", {}).get("field")
    param = ".".join(str(part) for part in (*first["loc"], *([field] if field else ()))) or None
    if first["type"] == "extra_forbidden":
        return UnknownField(f"unknown field {param!r}; remove it", param=param)
    if first["type"] == "missing":
        return MissingField(f"field {param!r} is missing", param=param)
    if first["type"] == "unsupported_parameter":
        return UnsupportedField(f"{param}: {first['msg']}", param=param)
    if param is None:
        return InvalidRequest(f"the request body is not a JSON object of the documented form: {first['msg']}")
    return InvalidRequest(f"{param}: {first['msg']}", param=param)
