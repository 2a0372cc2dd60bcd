"""The ASGI application: the routes, and around them errors in OpenAI's shape, the request log and the OpenAPI page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from deployments.args import LimitArgs, LogArgs, RoutingArgs
from deployments.http import admin, api, openapi
from deployments.http.access import Access
from deployments.http.admin import AdminApi
from deployments.http.api import Api, Service
from deployments.http.errors import HTTPFault, answer, from_any, unknown_url
from deployments.http.request_log import RequestLogMiddleware, record_of
from dlp_core.errors import DLPError


def create_app(
    service: Service,
    *,
    routing: RoutingArgs,
    limits: LimitArgs,
    access: Access,
    log: LogArgs | None = None,
    answers_id: bool = True,
) -> FastAPI:
    """`answers_id` is False behind a server that sends `x-request-id` back itself."""
    app = FastAPI(
        title="dlp",
        lifespan=partial(lifespan, service),
        description="A bank of LoRA adapters behind one OpenAI-compatible endpoint.",
        telemetry={"operation_spans": False, "exclude": lambda scope: scope["path"].endswith("/health")},
    )
    answer_errors(app)
    Api(service, routing=routing, limits=limits, access=access).add_to(app)
    AdminApi(service, limits=limits, access=access).add_to(app)
    openapi.describe(app, *api.BODIES, *admin.BODIES)
    # outside even of what answers unforeseen errors, which add_middleware would not be
    app.middleware_stack = RequestLogMiddleware(app.build_middleware_stack(), log or LogArgs(), answers_id=answers_id)
    return app


@asynccontextmanager
async def lifespan(service: Service, _: FastAPI) -> AsyncIterator[None]:
    # Serve sends requests only to replicas that have started: a new one must not answer 503 beside one that serves
    await service.ready()
    yield


def answer_errors(app: FastAPI) -> None:
    """Makes every error of `app` leave it OpenAI-shaped, noted in the request's record."""

    def respond(request: Request, error: DLPError) -> JSONResponse:
        record_of(request).failed(error)
        return answer(error)

    async def any_error(request: Request, error: Exception) -> JSONResponse:
        return respond(request, from_any(error))

    async def http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.url.path}"
        fault = unknown_url(what) if error.status_code in (404, 405) else HTTPFault(str(error.detail))
        fault.status = error.status_code
        fault.code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        response = respond(request, fault)
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(DLPError, any_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, any_error)
