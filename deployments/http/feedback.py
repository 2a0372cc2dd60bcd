"""The routes of feedback, and of the requests it is about.

POST /v1/feedback   {"request_id" | "text", "adapter", "rating", "comment"}   which adapter should have answered
GET  /v1/feedback   ?day=&limit=&after=                                       what was given on a day
GET  /v1/requests   ?day=&order=&reviewed=&limit=&after=                      what was routed on a day, with feedback

A key gives feedback on its own requests and reads its own; the admin token reads everything. The routes answer 404
where nothing is kept.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from deployments.args import LimitArgs
from deployments.http import openapi
from deployments.http.access import ADMIN, Access, Caller
from deployments.http.admission import Admission
from deployments.http.errors import NotKept, UnknownRequest
from deployments.http.fields import StrictBody
from deployments.http.ids import issued_at, issued_to
from deployments.http.input import parse, read_json
from deployments.http.keeping import Keeper
from deployments.http.request_log import record_of
from dlp_core.bank.feedback import Feedback, KeptRequest, Rating, by_request
from dlp_core.bank.kept import KeptRecord, parse_day, today
from dlp_core.decision import usable
from dlp_core.errors import InvalidRequest, UnknownModel

if TYPE_CHECKING:
    from dlp_core.bank.manifest import BankManifest

MAX_TEXT = 16_384
MAX_COMMENT = 2_000
MAX_LIMIT = 1_000

R = TypeVar("R", bound=KeptRecord)


class FeedbackBody(StrictBody):
    """POST /v1/feedback"""

    nullable: ClassVar[frozenset[str]] = frozenset({"adapter"})

    request_id: str | None = Field(default=None, min_length=1, max_length=128)
    """The `id` of a reply of this server."""
    text: str | None = Field(default=None, min_length=1, max_length=MAX_TEXT)
    """A prompt, in place of a request."""
    adapter: str | None = None
    """The adapter that should have answered; null: none of them."""
    rating: Rating | None = None
    user: str | None = Field(default=None, min_length=1)
    """The request's, if it had one: a canary that is sticky by user counts each of them once."""
    comment: str | None = Field(default=None, min_length=1, max_length=MAX_COMMENT)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.request_id is None) == (self.text is None):
            raise InvalidRequest("give exactly one of request_id and text", param="request_id")
        if self.text is not None and not self.text.strip():
            raise InvalidRequest("text is empty; give the prompt", param="text")
        if not self.model_fields_set & {"adapter", "rating", "comment"}:
            raise InvalidRequest("give at least one of adapter, rating and comment", param="adapter")
        return self


def _day(text: object) -> object:
    return parse_day(text) if isinstance(text, str) else text


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    day: Annotated[date, BeforeValidator(_day)] = Field(default_factory=today)
    """In UTC; today by default."""
    limit: int = Field(default=100, ge=1, le=MAX_LIMIT)
    after: str | None = None
    """The last id of the answer before this one."""


class FeedbackQuery(_Query):
    """GET /v1/feedback"""


class RequestsQuery(_Query):
    """GET /v1/requests"""

    order: Literal["time", "confidence"] = "time"
    """The newest first, or those first that the router was least sure of."""
    reviewed: bool | None = None
    """Only requests with feedback, or only those without."""


BODIES = (FeedbackBody,)


class FeedbackService(Protocol):
    """What the routes need."""

    def bank(self) -> BankManifest:
        """The bank that new requests use. Raises StoreUnavailable until a bank can be served."""

    def rated(self, request: str, issued: float, *, negative: bool, user: str | None, key: str | None) -> None:
        """Count a verdict on the reply with the id `request`, which it got at `issued`."""


class FeedbackApi:
    """One method per route. `keeper` is None where nothing is kept."""

    def __init__(
        self,
        service: FeedbackService,
        keeper: Keeper | None,
        *,
        limits: LimitArgs,
        access: Access,
        admission: Admission,
    ) -> None:
        self._service = service
        self._keeper = keeper
        self._limits = limits
        self._access = access
        self._admission = admission

    def add_to(self, app: FastAPI) -> None:
        app.post("/v1/feedback", openapi_extra=openapi.body(FeedbackBody))(self.give)
        app.get("/v1/feedback", openapi_extra=openapi.query(FeedbackQuery))(self.feedback)
        app.get("/v1/requests", openapi_extra=openapi.query(RequestsQuery))(self.requests)

    async def give(self, request: Request) -> Response:
        caller = self._admit(request, self._access.caller(request.headers.get("authorization")))
        keeper = self._kept()
        body = parse(FeedbackBody, await read_json(request, self._limits))
        bank = self._service.bank()
        if body.adapter is not None:
            allowed = usable(bank, caller.allowed(adapter.name for adapter in bank.adapters))
            if body.adapter not in (bank.names if allowed is None else allowed):
                raise UnknownModel(
                    f"adapter {body.adapter!r} does not exist in bank {bank.version}; GET /v1/bank lists the adapters",
                    param="adapter",
                )
        if body.request_id is not None and not issued_to(caller, body.request_id):
            raise UnknownRequest(
                f"request_id {body.request_id!r} is not the id of a reply to you; it is the reply's id, not its "
                "x-request-id",
                param="request_id",
            )
        given = body.model_dump(exclude_unset=True, exclude={"user"})
        feedback = Feedback(
            id=f"fb-{uuid.uuid4().hex}", created=time.time(), key=caller.name, bank=bank.version, **given
        )
        await keeper.give(feedback)
        if feedback.request_id is not None and (negative := feedback.negative) is not None:
            key = caller.name if caller.limited else None
            issued = issued_at(feedback.request_id)
            self._service.rated(feedback.request_id, issued, negative=negative, user=body.user, key=key)
        return JSONResponse({"id": feedback.id, "object": "feedback", "created": int(feedback.created)})

    async def feedback(self, request: Request) -> Response:
        reader = self._admit(request, self._access.reader(request.headers.get("authorization")))
        keeper = self._kept()
        query = parse(FeedbackQuery, dict(request.query_params))
        entries = _visible(await keeper.feedback(since=query.day, until=query.day), reader)
        return _page(list(reversed(entries)), query, lambda entry: {"object": "feedback", **entry.public()})

    async def requests(self, request: Request) -> Response:
        reader = self._admit(request, self._access.reader(request.headers.get("authorization")))
        keeper = self._kept()
        if not keeper.keeps_requests:
            raise NotKept("requests are not kept here: log.prompts is off")
        query = parse(RequestsQuery, dict(request.query_params))
        entries = _visible(await keeper.requests(since=query.day, until=query.day), reader)
        given = by_request(_visible(await keeper.feedback(since=query.day), reader))
        if query.reviewed is not None:
            entries = [entry for entry in entries if (entry.id in given) == query.reviewed]
        if query.order == "confidence":
            entries.sort(key=lambda entry: 2.0 if entry.confidence is None else entry.confidence)
        else:
            entries.reverse()

        def with_feedback(entry: KeptRequest) -> dict[str, Any]:
            return {
                "object": "request",
                **entry.model_dump(),
                "feedback": [opinion.public() for opinion in given.get(entry.id, ())],
            }

        return _page(entries, query, with_feedback)

    def _admit(self, request: Request, caller: Caller) -> Caller:
        return record_of(request).authenticated(caller, self._admission)

    def _kept(self) -> Keeper:
        if self._keeper is None:
            raise NotKept(
                "feedback is not kept here: feedback.keep is off, as it is where an unpublished folder is served"
            )
        return self._keeper


def _visible(entries: list[R], reader: Caller) -> list[R]:
    return entries if reader is ADMIN else [entry for entry in entries if entry.key == reader.name]


def _page(entries: Sequence[R], query: _Query, as_json: Callable[[R], dict[str, Any]]) -> JSONResponse:
    """The entries after `query.after`, `query.limit` of them. Raises InvalidRequest if that is not one of them."""
    start = 0
    if query.after is not None:
        ids = [entry.id for entry in entries]
        if query.after not in ids:
            raise InvalidRequest(f"after: {query.after[:128]!r} is not in this list", param="after")
        start = ids.index(query.after) + 1
    end = start + query.limit
    data = [as_json(entry) for entry in entries[start:end]]
    return JSONResponse({"object": "list", "data": data, "has_more": end < len(entries)})
