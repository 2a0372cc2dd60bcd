"""The admin routes: they change the bank. There are none unless the server has an admin token.

POST /v1/load_lora_adapter      {"lora_name", "lora_path"}     vLLM's bodies and answers
POST /v1/unload_lora_adapter    {"lora_name"}
POST /v1/bank/publish           {"folder", "version"}          a bank folder the server can read, or s3://bucket/prefix/
POST /v1/bank/rollback          {"version"}                    by default the bank before this one

Each publishes a new version of the bank, or moves the pointer, and answers when this replica of the ingress serves it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import Field

from deployments.args import LimitArgs
from deployments.http import errors, openapi
from deployments.http.access import Access
from deployments.http.input import parse, read_json
from deployments.http.requests import StrictBody

if TYPE_CHECKING:
    from dlp_core.bank.manifest import BankManifest


class LoadAdapter(StrictBody):
    """vLLM's body, and `examples`: prompts that teach the router to choose the adapter."""

    lora_name: str = Field(min_length=1)
    lora_path: str = Field(min_length=1)
    load_inplace: bool = False
    examples: list[str] | None = None


class UnloadAdapter(StrictBody):
    lora_name: str = Field(min_length=1)
    lora_int_id: int | None = None  # vLLM's, of no meaning here


class PublishBank(StrictBody):
    folder: str = Field(min_length=1)
    version: str | None = None


class RollbackBank(StrictBody):
    version: str | None = None


BODIES = (LoadAdapter, UnloadAdapter, PublishBank, RollbackBank)


class AdminService(Protocol):
    """What the routes need. Each returns the bank that serves when it is done, and raises errors of dlp_core.errors."""

    async def load_adapter(self, body: LoadAdapter) -> BankManifest: ...

    async def unload_adapter(self, name: str) -> BankManifest: ...

    async def publish(self, folder: str, version: str | None) -> BankManifest: ...

    async def rollback(self, version: str | None) -> BankManifest: ...


def install(api: FastAPI, service: AdminService, access: Access, limits: LimitArgs) -> None:
    """Adds the routes to `api`. Whether there is a token is asked at each request."""

    async def body_of(request: Request) -> object:
        if not access.require_admin(request.headers.get("authorization")):
            raise errors.unknown_url(f"{request.method} {request.url.path}")
        headers = request.headers
        if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
            return {}
        return await read_json(request, limits.max_body_bytes)

    @api.post("/v1/load_lora_adapter", openapi_extra=openapi.body(LoadAdapter))
    async def load(request: Request) -> Response:
        body = parse(LoadAdapter, await body_of(request))
        await service.load_adapter(body)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @api.post("/v1/unload_lora_adapter", openapi_extra=openapi.body(UnloadAdapter))
    async def unload(request: Request) -> Response:
        body = parse(UnloadAdapter, await body_of(request))
        await service.unload_adapter(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    @api.post("/v1/bank/publish", openapi_extra=openapi.body(PublishBank))
    async def publish(request: Request) -> Response:
        body = parse(PublishBank, await body_of(request))
        return _serving(await service.publish(body.folder, body.version))

    @api.post("/v1/bank/rollback", openapi_extra=openapi.body(RollbackBank))
    async def rollback(request: Request) -> Response:
        body = parse(RollbackBank, await body_of(request))
        return _serving(await service.rollback(body.version))


def _serving(bank: BankManifest) -> Response:
    return JSONResponse({"version": bank.version, "adapters": len(bank.adapters)})
