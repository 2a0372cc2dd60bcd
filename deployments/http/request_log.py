"""A record of each request, and one log line per request to a generation route or /v1/route, whatever its outcome.

A `RequestRecord` is part of the request's state from the first byte to the last; the routes add what they learn.
`RequestLogMiddleware` wraps the entire application: it creates the record, observes the status and how the response
ended, and writes the line. The logger is a child of Serve's, so the line goes to the replica's log and its `extra`
fields become top-level keys if that log is JSON (logging_config in serve_config.yaml).

The request's span, if there is one, gets the same facts as attributes. Where requests are kept (keeping.py), those that
the router decided are handed on with the text that it read.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import Request
from opentelemetry import trace
from opentelemetry.trace import StatusCode
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.args import LogArgs
from deployments.http.replies import remarks_json, weights_json
from deployments.http.requests import ChatRequest
from deployments.observe import tracing
from dlp_core.bank.feedback import AdapterShare, KeptRequest
from dlp_core.bank.rollout import Picked, Role, is_a_failure
from dlp_core.decision import Decision
from dlp_core.errors import DLPError
from dlp_core.fleet.trial import Outcome
from dlp_core.generation.messages import Completion, Finished, Piece, TokenIds
from dlp_core.router.features import clip
from dlp_core.text.template import turns_of

if TYPE_CHECKING:
    from deployments.http.access import Caller
    from deployments.http.admission import Admission
    from deployments.http.keeping import Keeper
    from deployments.http.requests import AnyRequest

log = logging.getLogger("ray.serve.dlp.request")

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/route")
_OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
REQUEST_ID = "x-request-id"
GONE = "client_disconnected"
GONE_STATUS = 499
_ID_LENGTH = 128
_MODEL_LENGTH = 256

OnEnd = Callable[[str, int, str | None], None]
"""Told of a request that ended: its route, status and error code, as its line has them."""


class RequestRecord:
    """The facts about one request, filled in by the routes as they learn them."""

    def __init__(self, request_id: str, route: str, settings: LogArgs) -> None:
        self.request_id = request_id
        self._route = route
        self._settings = settings
        self._began = time.perf_counter()
        self._caller: str | None = None
        self._admission: Admission | None = None
        self._places = 0
        self._body: AnyRequest | None = None
        self._parsed_at = self._began
        self._seconds = 0.0
        self._decision: Decision | None = None
        self._created = time.time()
        self._text: str | None = None
        self._reply_id: str | None = None
        self._decide_seconds: float | None = None
        self._first_token_seconds: float | None = None
        self._finished: dict[int, Finished] = {}
        self._completions: dict[int, Completion] = {}
        self._error_code: str | None = None
        self._error: DLPError | None = None
        self._picked: tuple[Picked, Callable[[Picked, Outcome], object]] | None = None
        self._role: Role | None = None
        self._ended_at: float | None = None
        self._span = trace.get_current_span()

    def authenticated(self, caller: Caller, admission: Admission) -> Caller:
        """Note the caller, who holds one of its places until `left`. Raises TooManyRequests."""
        self._caller = caller.name
        if caller.limited:
            admission.enter(caller.name)
            self._admission, self._places = admission, 1
        return caller

    def admit(self, completions: int) -> None:
        """Take a place for each completion the request asks for. Raises TooManyRequests."""
        if self._admission is not None and self._caller is not None:
            self._admission.enter(self._caller, completions - self._places, held=self._places)
            self._places = completions

    def left(self) -> None:
        """The response has ended, however it did."""
        self._tell()
        if self._admission is not None and self._caller is not None:
            self._admission.leave(self._caller, self._places)

    def parsed(self, body: AnyRequest) -> None:
        """Note the valid body of the request."""
        self._body = body
        self._parsed_at = time.perf_counter()

    def picked(self, picked: Picked, ended: Callable[[Picked, Outcome], object]) -> Picked:
        """Note the bank that answers, from now on. `ended` is called with what became of the request, once."""
        self._picked, self._role = (picked, ended), picked.role
        self._decision = self._first_token_seconds = self._ended_at = None
        self._finished.clear()
        self._completions.clear()
        return picked

    def spoiled(self, error: DLPError) -> None:
        """The bank failed, and another one will answer: the client does not see this error."""
        self._error = error
        self._tell()
        self._error = None

    def _tell(self) -> None:
        """Say what became of the request with the bank that was picked."""
        if self._picked is None:
            return
        picked, ended = self._picked
        self._picked = None
        whole = self._error is None and self._body is not None and self._ended_at is not None
        reason = None if self._decision is None else self._decision.reason
        ended(
            picked,
            Outcome(
                abstained=reason in ("none_of_these", "low_confidence"),
                error=self._error is not None and is_a_failure(self._error),
                seconds=self._ended_at - self._parsed_at if whole and self._ended_at is not None else None,
            ),
        )

    def decided(self, decision: Decision) -> Decision:
        self._decision = decision
        self._decide_seconds = time.perf_counter() - self._parsed_at
        self._annotate()
        return decision

    def routed(self, text: str) -> None:
        """Note the text by which the router decided."""
        self._text = text

    def answered(self, reply_id: str) -> str:
        """Note the id of the reply."""
        self._reply_id = reply_id
        return reply_id

    def failed(self, error: DLPError) -> None:
        """Note an error that the client receives, as the status or as the end of a started stream."""
        self._error, self._error_code = error, error.code
        self._annotate()
        if self._span.is_recording():
            self._span.set_attribute("error.type", error.code)
            if error.status >= 500:
                self._span.set_status(StatusCode.ERROR, error.code)

    def arrived(self, index: int, piece: Piece) -> None:
        """Note a piece of choice `index` before it is sent: when the first one came, and how each choice ended."""
        if isinstance(piece, Finished):
            self._finished[index] = piece
            if len(self._finished) == getattr(self._body, "choices", 1):
                self._ended_at = time.perf_counter()
            self._annotate()
            return
        if self._first_token_seconds is None:
            self._first_token_seconds = time.perf_counter() - self._began
        if self._settings.prompts:
            self._completions.setdefault(index, Completion()).add(piece)

    def end(self, status: int, *, gone: bool) -> tuple[int, str | None]:
        """How the request ended, as status and error code. `gone`: the client disconnected before the end."""
        self._seconds = round(time.perf_counter() - self._began, 6)
        if gone:
            status, self._error_code = GONE_STATUS, GONE
        return status, self._error_code

    def kept(self, status: int) -> KeptRequest | None:
        """What is kept of the request; None if the router did not decide it, or there was no reply."""
        if self._decision is None or self._text is None or self._reply_id is None:
            return None
        decision = self._decision
        return KeptRequest(
            id=self._reply_id,
            created=self._created,
            key=self._caller or "",
            route=self._route,
            text=clip(self._text),
            mix=tuple(AdapterShare(adapter=part.name, weight=part.weight) for part in decision.mix.adapters),
            recipes=decision.mix.recipes,
            reason=decision.reason,
            confidence=decision.confidence,
            bank=decision.bank,
            router=decision.router,
            status=status,
            error_code=self._error_code,
            total_seconds=self._seconds,
            decide_seconds=_rounded(self._decide_seconds),
            first_token_seconds=_rounded(self._first_token_seconds),
        )

    def write(self, status: int) -> None:
        """Write the log line."""
        end = self._error_code or "+".join(self._finish_reasons()) or "ok"
        # skipped: Serve's own context would add the unsanitized request id, and job, worker and task ids
        log.info("%s %d %s", self._route, status, end, extra=self._fields(status) | {"skip_context_filter": True})

    def _fields(self, status: int) -> dict[str, Any]:
        body, decision = self._body, self._decision
        prompt_tokens, completion_tokens = self._tokens()
        trace_id = self._span.get_span_context().trace_id
        return {
            "request_id": self.request_id,
            "trace_id": trace.format_trace_id(trace_id) if trace_id else None,
            "caller": self._caller,
            "route": self._route,
            "model": self._model(),
            "stream": getattr(body, "stream", False),
            "n": getattr(body, "n", 1),
            "bank": decision and decision.bank,
            "bank_role": self._role,
            "router": decision and decision.router,
            "mix": decision and weights_json(decision.mix),
            **({} if decision is None else remarks_json(decision.mix)),
            "reason": decision and decision.reason,
            "confidence": decision and decision.confidence,
            "status": status,
            "error_code": self._error_code,
            "finish_reasons": self._finish_reasons(),
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_seconds": self._seconds,
            "decide_seconds": _rounded(self._decide_seconds),
            "first_token_seconds": _rounded(self._first_token_seconds),
            **(self._prompt_and_completions() if self._settings.prompts else {}),
        }

    def _prompt_and_completions(self) -> dict[str, Any]:
        body = self._body
        if body is None:
            return {}
        if isinstance(body, ChatRequest):
            prompt: Any = turns_of(body.sources[0], parts=False, arguments="string")
        else:
            prompts = [list(source.ids) if isinstance(source, TokenIds) else source for source in body.sources]
            prompt = prompts[0] if len(prompts) == 1 else prompts
        return {
            "prompt": prompt,
            "completions": [_written(self._completions[index]) for index in sorted(self._completions)],
        }

    def _model(self) -> str | None:
        """The `model` field as sent, which may be any string; truncated."""
        return None if self._body is None else self._body.model[:_MODEL_LENGTH]

    def _finish_reasons(self) -> list[str]:
        return [self._finished[index].finish_reason for index in sorted(self._finished)]

    def _tokens(self) -> tuple[int | None, int | None]:
        """Prompt and completion tokens; None before any choice has ended."""
        if not self._finished:
            return None, None
        n = getattr(self._body, "n", 1)  # the choices of a prompt, which counts once
        prompts = {index // n: choice.prompt_tokens for index, choice in self._finished.items()}
        return sum(prompts.values()), sum(choice.completion_tokens for choice in self._finished.values())

    def _annotate(self) -> None:
        """Set the facts known so far on the span, which ends with the last byte sent."""
        if not self._span.is_recording():
            return
        operation, decision = _OPERATIONS.get(self._route), self._decision
        prompt_tokens, completion_tokens = self._tokens()
        attributes: dict[str, Any] = {
            "dlp.request_id": self.request_id,
            "dlp.caller": self._caller,
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": operation and tracing.SERVICE,
            "gen_ai.request.model": self._model(),
            "gen_ai.response.finish_reasons": self._finish_reasons() or None,
            "gen_ai.response.time_to_first_chunk": self._first_token_seconds,
            "gen_ai.usage.input_tokens": prompt_tokens,
            "gen_ai.usage.output_tokens": completion_tokens,
        }
        if decision is not None:
            attributes |= tracing.decision_attributes(decision)
        self._span.set_attributes({key: value for key, value in attributes.items() if value is not None})


def record_of(request: Request) -> RequestRecord:
    record: RequestRecord = request.state.record
    return record


class RequestLogMiddleware:
    """Wraps the application and keeps a record of each request.

    Takes the request id from the client's `x-request-id`, sanitized, or creates one. `sets_id_header` says whether the
    response header is set here or by the server in front.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: LogArgs,
        *,
        keeper: Keeper | None,
        on_end: OnEnd | None,
        sets_id_header: bool,
    ) -> None:
        self._app = app
        self._keeper = keeper if keeper is not None and keeper.keeps_requests else None
        self._settings = settings
        self._on_end = on_end
        self._answers_id = sets_id_header

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = scope["path"].removeprefix(scope.get("root_path", ""))
        record = RequestRecord(safe_id(Headers(scope=scope).get(REQUEST_ID)), route, self._settings)
        scope.setdefault("state", {})["record"] = record
        status, complete, gone = 0, False, False

        async def recorded_receive() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or (message["type"] == "http.disconnect" and not complete)
            return message

        async def recorded_send(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._answers_id:
                    MutableHeaders(scope=message)[REQUEST_ID] = record.request_id
            await send(message)
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self._app(scope, recorded_receive, recorded_send)
        except asyncio.CancelledError:
            gone = not complete  # Serve cancels a request when its client disconnects
            raise
        finally:
            record.left()
            if route in ROUTES:
                status, error_code = record.end(status or DLPError.status, gone=gone or (status != 0 and not complete))
                if self._on_end is not None:
                    self._on_end(route, status, error_code)
                if self._settings.requests:
                    record.write(status)
                if self._keeper is not None and (kept := record.kept(status)) is not None:
                    self._keeper.keep(kept)


def safe_id(client_id: str | None) -> str:
    """A request id safe for headers, logs and spans: printable ASCII without spaces, of bounded length."""
    return re.sub(r"[^!-~]", "_", client_id[:_ID_LENGTH]) if client_id else uuid.uuid4().hex


def _written(completion: Completion) -> str:
    """A completion's text, and below it its calls."""
    calls = [f"{call.name}({call.arguments})" for call in completion.calls]
    return "\n".join([completion.text, *calls] if completion.text else calls)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
