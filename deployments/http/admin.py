"""The admin routes, which change the bank. They exist only if the server has an admin token.

POST /v1/load_lora_adapter      {"lora_name", "lora_path"}     vLLM's bodies and responses
POST /v1/unload_lora_adapter    {"lora_name"}
POST /v1/bank/publish           {"folder", "version", "stage"} a bank folder the server can read, or a URI as in --bank
POST /v1/bank/rollback          {"version"}                    default: ends the canary, or the previous bank
POST /v1/bank/canary            {"version", "share", ...}      serves a share of the requests; {"stop": true} ends it
POST /v1/bank/promote           {}                             the canary becomes the serving bank
POST /v1/bank/shadow            {"version", "generate"}        compares; {"stop": true} ends it
POST /v1/bank/pin, /unpin       {"version"}                    whether `dlp bank gc` must keep it
GET  /v1/bank/versions                                         every published bank, newest first
GET  /v1/bank/diff              ?from=&to=                     what changes from one version to another
GET  /v1/bank/evaluations                                      the evaluations in the bank's store, each with a verdict

The first seven publish a new version of the bank or change the pointer, and respond once this ingress replica has
followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import Field, model_validator

from deployments.args import LimitArgs
from deployments.http import openapi
from deployments.http.access import Access
from deployments.http.errors import unknown_url
from deployments.http.fields import StrictBody
from deployments.http.input import parse, read_json
from dlp_core.bank.canary import SHARE
from dlp_core.bank.manifest import MAX_DESCRIPTION
from dlp_core.errors import InvalidRequest
from dlp_core.fleet.trial import StickyBy

if TYPE_CHECKING:
    from dlp_core.bank.difference import BankDiff
    from dlp_core.bank.manifest import BankManifest
    from dlp_core.bank.reading import BankVersion


class LoadAdapter(StrictBody):
    """vLLM's body plus `examples` and `description`: prompts that teach the router to choose the adapter, and a
    sentence that says what it is for."""

    lora_name: str = Field(min_length=1)
    lora_path: str = Field(min_length=1)
    load_inplace: bool = False
    examples: list[str] | None = None
    description: str | None = Field(default=None, min_length=1, max_length=MAX_DESCRIPTION)


class UnloadAdapter(StrictBody):
    lora_name: str = Field(min_length=1)
    lora_int_id: int | None = None  # vLLM's, ignored


class PublishBank(StrictBody):
    folder: str = Field(min_length=1)
    version: str | None = None
    stage: bool = False
    """Store it without serving it."""


class RollbackBank(StrictBody):
    version: str | None = None


class _Beside(StrictBody):
    version: str | None = None
    stop: bool = False

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if self.stop == (self.version is not None):
            raise InvalidRequest("give the version to start, or stop: true", param="version")
        return self


class CanaryBank(_Beside):
    share: float = Field(default=SHARE, gt=0, lt=1)
    sticky_by: StickyBy = "user"
    promote_after_requests: int | None = Field(default=None, ge=1)
    promote_after_hours: float | None = Field(default=None, gt=0)


class ShadowBank(_Beside):
    generate: bool = False


class PromoteBank(StrictBody):
    pass


class PinBank(StrictBody):
    version: str = Field(min_length=1)


class Compared(StrictBody):
    """The query of GET /v1/bank/diff: two versions."""

    from_: str = Field(min_length=1, alias="from")
    to: str = Field(min_length=1)


BODIES = (LoadAdapter, UnloadAdapter, PublishBank, RollbackBank, CanaryBank, ShadowBank, PromoteBank, PinBank)


class Published(NamedTuple):
    """The bank that serves after a change, and what the owner of its new adapters should look at."""

    bank: BankManifest
    warnings: tuple[str, ...]


class AdminService(Protocol):
    """What the routes need. Methods return the bank that serves afterwards and raise errors of dlp_core.errors."""

    async def load_adapter(self, body: LoadAdapter) -> Published: ...

    async def unload_adapter(self, name: str) -> BankManifest: ...

    async def publish(self, body: PublishBank) -> Published: ...

    async def rollback(self, version: str | None) -> BankManifest: ...

    async def set_canary(self, body: CanaryBank) -> None: ...

    async def promote(self) -> None: ...

    async def set_shadow(self, body: ShadowBank) -> None: ...

    def rollout(self) -> dict[str, Any]: ...

    async def pin(self, version: str, *, pinned: bool) -> None: ...

    async def versions(self) -> Sequence[BankVersion]: ...

    async def diff(self, a: str, b: str) -> BankDiff: ...

    async def evaluations(self) -> dict[str, list[dict[str, Any]]]: ...


class AdminApi:
    """One method per route. Each request checks whether an admin token is configured."""

    def __init__(self, service: AdminService, *, limits: LimitArgs, access: Access) -> None:
        self._service = service
        self._limits = limits
        self._access = access

    def add_to(self, app: FastAPI) -> None:
        app.post("/v1/load_lora_adapter", openapi_extra=openapi.body(LoadAdapter))(self.load)
        app.post("/v1/unload_lora_adapter", openapi_extra=openapi.body(UnloadAdapter))(self.unload)
        app.post("/v1/bank/publish", openapi_extra=openapi.body(PublishBank))(self.publish)
        app.post("/v1/bank/rollback", openapi_extra=openapi.body(RollbackBank))(self.rollback)
        app.post("/v1/bank/canary", openapi_extra=openapi.body(CanaryBank))(self.canary)
        app.post("/v1/bank/promote", openapi_extra=openapi.body(PromoteBank))(self.promote)
        app.post("/v1/bank/shadow", openapi_extra=openapi.body(ShadowBank))(self.shadow)
        app.post("/v1/bank/pin", openapi_extra=openapi.body(PinBank))(self.pin)
        app.post("/v1/bank/unpin", openapi_extra=openapi.body(PinBank))(self.unpin)
        app.get("/v1/bank/versions")(self.versions)
        app.get("/v1/bank/diff")(self.diff)
        app.get("/v1/bank/evaluations")(self.evaluations)

    async def load(self, request: Request) -> Response:
        body = parse(LoadAdapter, await self._body(request))
        published = await self._service.load_adapter(body)
        success = f"Success: LoRA adapter '{body.lora_name}' added successfully."
        return PlainTextResponse("\n".join([success, *(f"Warning: {warning}" for warning in published.warnings)]))

    async def unload(self, request: Request) -> Response:
        body = parse(UnloadAdapter, await self._body(request))
        await self._service.unload_adapter(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    async def publish(self, request: Request) -> Response:
        body = parse(PublishBank, await self._body(request))
        bank, warnings = await self._service.publish(body)
        return JSONResponse({**_serving(bank), "warnings": warnings})

    async def rollback(self, request: Request) -> Response:
        body = parse(RollbackBank, await self._body(request))
        return JSONResponse(_serving(await self._service.rollback(body.version)))

    async def canary(self, request: Request) -> Response:
        await self._service.set_canary(parse(CanaryBank, await self._body(request)))
        return JSONResponse(self._service.rollout())

    async def promote(self, request: Request) -> Response:
        parse(PromoteBank, await self._body(request))
        await self._service.promote()
        return JSONResponse(self._service.rollout())

    async def shadow(self, request: Request) -> Response:
        await self._service.set_shadow(parse(ShadowBank, await self._body(request)))
        return JSONResponse(self._service.rollout())

    async def pin(self, request: Request) -> Response:
        return await self._pin(request, pinned=True)

    async def unpin(self, request: Request) -> Response:
        return await self._pin(request, pinned=False)

    async def _pin(self, request: Request, *, pinned: bool) -> Response:
        body = parse(PinBank, await self._body(request))
        await self._service.pin(body.version, pinned=pinned)
        return JSONResponse({"version": body.version, "pinned": pinned})

    async def versions(self, request: Request) -> Response:
        self._require_admin(request)
        return JSONResponse({"object": "list", "data": [_version(one) for one in await self._service.versions()]})

    async def diff(self, request: Request) -> Response:
        self._require_admin(request)
        compared = parse(Compared, dict(request.query_params))
        difference = await self._service.diff(compared.from_, compared.to)
        return JSONResponse({"from": compared.from_, "to": compared.to, **asdict(difference)})

    async def evaluations(self, request: Request) -> Response:
        self._require_admin(request)
        found = await self._service.evaluations()
        return JSONResponse({"object": "list", "data": found["results"], "unreadable": found["unreadable"]})

    def _require_admin(self, request: Request) -> None:
        if not self._access.require_admin(request.headers.get("authorization")):
            raise unknown_url(f"{request.method} {request.url.path}")

    async def _body(self, request: Request) -> object:
        self._require_admin(request)
        headers = request.headers
        if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
            return {}
        return await read_json(request, self._limits)


def _serving(bank: BankManifest) -> dict[str, Any]:
    return {"version": bank.version, "adapters": len(bank.adapters)}


def _version(one: BankVersion) -> dict[str, Any]:
    return asdict(one) | {"created": one.created.isoformat()}
