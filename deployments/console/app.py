"""The console's ASGI application.

GET  /  /playground  /bank  /traffic  /review  /evaluate    the page
GET  /static/...                                            its style and modules
GET  /console/state                                         what this console may do, without secrets
GET  /console/traffic?since=                                the last hour
GET  /console/reports                                       evaluations
GET  /console/health                                        for probes
any  /api/...                                               the server's API (proxy.py)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib import metadata
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from deployments.console.guard import OPEN, Guard
from deployments.console.proxy import Api
from deployments.console.reports import Reports
from deployments.console.settings import ConsoleSettings
from deployments.console.traffic import EVERY_S, Traffic

STATIC = Path(__file__).with_name("static")
PAGES = ("/", "/playground", "/bank", "/traffic", "/review", "/evaluate")
_REVALIDATE = {"cache-control": "no-cache"}  # a new version is seen at once; what is unchanged costs a 304


class _Static(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_REVALIDATE)
        return response


def create_console(settings: ConsoleSettings, *, every_s: float = EVERY_S) -> Starlette:
    """The application. `every_s` is how often it reads the server's metrics."""
    api = Api(settings)
    traffic = Traffic(api, every_s=every_s)
    reports = Reports(settings.reports)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(traffic.watch())
        try:
            yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            await api.close()

    async def page(_: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers=_REVALIDATE)

    async def state(_: Request) -> Response:
        return JSONResponse(
            {
                "version": metadata.version("dlp-serve"),
                "url": settings.url,
                "key": settings.key is not None,
                "admin": settings.admin_token is not None,
                "password": settings.password is not None,
                "reports": None if settings.reports is None else str(settings.reports),
            }
        )

    async def history(request: Request) -> Response:
        try:
            since = float(request.query_params.get("since", "0"))
        except ValueError:
            since = 0.0
        await traffic.fresh.wait()
        return JSONResponse(traffic.json(since))

    async def evaluations(_: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(reports.json))

    async def health(_: Request) -> Response:
        return PlainTextResponse("ok")

    return Starlette(
        routes=[
            *(Route(path, page) for path in PAGES),
            Route("/console/state", state),
            Route("/console/traffic", history),
            Route("/console/reports", evaluations),
            Route(OPEN, health),
            Route("/api/{path:path}", api.forward, methods=["GET", "POST"]),
            Mount("/static", _Static(directory=STATIC)),
        ],
        middleware=[Middleware(Guard, settings=settings)],
        lifespan=lifespan,
    )
