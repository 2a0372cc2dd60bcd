"""The ASGI application: the routes, with error handling in OpenAI's shape, the request log and the OpenAPI page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.args import LimitArgs, LogArgs, RoutingArgs
from deployments.http import admin, api, feedback, openapi
from deployments.http.access import Access
from deployments.http.admin import AdminApi
from deployments.http.admission import Admission
from deployments.http.api import Api, Service
from deployments.http.errors import HTTPError, as_api_error, error_response, unknown_url
from deployments.http.feedback import FeedbackApi
from deployments.http.keeping import Keeper
from deployments.http.request_log import OnEnd, RequestLogMiddleware, record_of
from deployments.http.sharing import Share
from dlp_core.errors import DLPError


def create_app(
    service: Service,
    *,
    routing: RoutingArgs,
    limits: LimitArgs,
    access: Access,
    share: Share = "key",
    log: LogArgs | None = None,
    keeper: Keeper | None = None,
    console_url: str | None = None,
    on_end: OnEnd | None = None,
    sets_id_header: bool = True,
) -> FastAPI:
    """Build the application. Without a `keeper`, there is no feedback. `on_end` is told of each request that is logged,
    whether or not lines are written; `sets_id_header` is False behind a server that returns `x-request-id` itself."""
    app = FastAPI(
        title="dlp",
        lifespan=partial(lifespan, service, keeper),
        description="A bank of LoRA adapters behind one OpenAI-compatible endpoint.",
        openapi_url=None,  # api.py has the pages, for callers
        redirect_slashes=False,  # see TrailingSlash
        telemetry={"operation_spans": False, "exclude": lambda scope: scope["path"].endswith(("/health", "/metrics"))},
    )
    handle_errors(app)
    admission = Admission(limits.max_requests_per_key)
    Api(
        service,
        routing=routing,
        limits=limits,
        access=access,
        admission=admission,
        share=share,
        console_url=console_url,
    ).add_to(app)
    FeedbackApi(service, keeper, limits=limits, access=access, admission=admission).add_to(app)
    AdminApi(service, limits=limits, access=access).add_to(app)
    openapi.describe(app, *api.BODIES, *admin.BODIES, *feedback.BODIES)
    if access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=access.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    app.add_middleware(TrailingSlash)
    # outermost, around the handler of unexpected errors too: add_middleware would put it inside
    app.middleware_stack = RequestLogMiddleware(
        app.build_middleware_stack(), log or LogArgs(), keeper=keeper, on_end=on_end, sets_id_header=sets_id_header
    )
    return app


class TrailingSlash:
    """Serves a path with a slash at its end as the one without. A redirect would lose the body in some clients."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        await self._app(scope, receive, send)


@asynccontextmanager
async def lifespan(service: Service, keeper: Keeper | None, _: FastAPI) -> AsyncIterator[None]:
    # Serve routes requests to started replicas only: a new one must not answer 503 while others can serve
    await service.ready()
    if keeper is None:
        yield
        return
    expiring = asyncio.create_task(keeper.expire())
    try:
        yield
    finally:  # Serve ends a replica after its last request
        expiring.cancel()
        with suppress(asyncio.CancelledError):
            await expiring
        await keeper.close()


def handle_errors(app: FastAPI) -> None:
    """Turn every error of `app` into a response of OpenAI's shape and note it in the request's record."""

    def respond(request: Request, error: DLPError) -> JSONResponse:
        record_of(request).failed(error)
        return error_response(error)

    async def any_error(request: Request, error: Exception) -> JSONResponse:
        return respond(request, as_api_error(error))

    async def http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        request_line = f"{request.method} {request.url.path}"
        api_error = unknown_url(request_line) if error.status_code in (404, 405) else HTTPError(str(error.detail))
        api_error.status = error.status_code
        api_error.code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        response = respond(request, api_error)
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(DLPError, any_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, any_error)
