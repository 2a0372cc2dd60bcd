"""A service behind the HTTP API, without Ray and without a model: it routes by the words of a text and answers with
that text, word by word. That the real one behaves alike is tests/cluster/application/test_application.py's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from deployments.args import LimitArgs
from dlp_core.bank.rollout import Picked, ShadowCounts
from dlp_core.decision import Decision, RoutingOptions, decide
from dlp_core.errors import StoreUnavailable, UnknownModel
from dlp_core.fleet.trial import Outcome
from dlp_core.generation.messages import Delta, Finished, GenerationRequest, Logprob, Piece, TokenIds, TokenText
from dlp_core.mix import EMPTY_MIX, Mix, Span, select_top_p
from dlp_core.router import Passage, Routing
from dlp_core.router.explanation import Explanation, WordEffect
from dlp_core.together import ANY

BASE = "org/tiny"
LIMITS = LimitArgs(max_body_bytes=20_000, request_timeout_s=60)


@dataclass
class WordRouting:
    probabilities: dict[str, float]
    turn: int = 0

    @property
    def confidence(self) -> float:
        return max(self.probabilities.values(), default=0.0)

    @property
    def none(self) -> float:
        return 1.0 - sum(self.probabilities.values())

    @property
    def margin(self) -> float:
        return 1.0 - 2.0 * self.none

    top_p = 0.9

    def mix(self, *, top_p: float | None, exact: bool, **options: Any) -> Mix:
        chosen = select_top_p(self.probabilities, top_p=top_p or self.top_p, **options)
        chosen = chosen if exact else chosen.on_grid()
        return chosen if self.margin > 0 else EMPTY_MIX


def manifest(**changes: Any) -> Any:
    adapters = [
        SimpleNamespace(name=name, digest=f"sha256:{name}", description=about, alora_invocation_tokens=invocation)
        for name, about, invocation in (
            ("sql", "Writes queries.", None),
            ("cron", None, None),
            ("dates", None, (5, 6)),
        )
    ]
    bank: dict[str, Any] = {
        "version": "b1",
        "base_model": SimpleNamespace(id=BASE),
        "adapters": adapters,
        "recipes": [],
        "recipe_mixes": {},
        "together": ANY,
        "allowed_together": None,
        "names": [adapter.name for adapter in adapters],
        "router": SimpleNamespace(version="r1", labels=("cron", "dates", "sql")),
        "model_dump": lambda mode, exclude: {"version": "b1"},
    }
    return SimpleNamespace(**bank | changes)


@dataclass
class EchoService:
    manifest: Any = field(default_factory=manifest)
    asked: list[GenerationRequest] = field(default_factory=list)
    wishes: list[RoutingOptions] = field(default_factory=list)
    fail: Exception | None = None
    fail_after: int = 0  # pieces
    fail_number: int | None = None
    """The generation that fails; every one does where this is None."""
    stall_after: int | None = None
    """Pieces after which it says nothing more."""
    clock_leaps: bool = False
    """Whether the event loop's clock passes every deadline when it stalls."""
    metrics_text: bytes = b"dlp_requests_running 2.0\n"
    outcomes: list[tuple[str, Outcome]] = field(default_factory=list)
    ratings: list[tuple[str, float, bool, str | None, str | None]] = field(default_factory=list)
    closed: int = 0
    decoded: int = 0

    async def ready(self) -> None:
        pass

    def bank(self) -> Any:
        if self.manifest is None:
            raise StoreUnavailable("bank s3://b/ is not ready: connection refused", retry_after=5)
        return self.manifest

    def pick(self, *, version: str | None, user: str | None, key: str | None, request: str) -> Picked:
        if version not in (None, self.bank().version):
            raise UnknownModel(f"bank version {version!r} is not in use", param="dlp.bank")
        return Picked(self.bank(), "serving")

    def ended(self, picked: Picked, outcome: Outcome) -> None:
        self.outcomes.append((picked.role, outcome))

    def rated(self, request: str, issued: float, *, negative: bool, user: str | None, key: str | None) -> None:
        self.ratings.append((request, issued, negative, user, key))

    def shadow(self) -> Any:
        return None

    def compared(self, version: str, counts: ShadowCounts) -> None:
        raise AssertionError("there is no shadow")

    def rollout(self) -> dict[str, Any]:
        return {}

    async def metrics(self) -> bytes:
        return self.metrics_text

    async def decide(self, picked: Picked, options: RoutingOptions, texts: Sequence[str]) -> Decision:
        async def route(texts: Sequence[str]) -> Any:
            for turn, text in enumerate(texts):
                words = [word for word in text.split() if word in self.bank().router.labels and options.may_use(word)]
                if words:
                    return WordRouting({name: words.count(name) / len(words) for name in dict.fromkeys(words)}, turn)
            return WordRouting({})

        self.wishes.append(options)
        return await decide(picked.bank, options, texts, route)

    async def explain(self, decision: Decision, texts: Sequence[str]) -> Explanation:
        return Explanation(texts[0], "sql", tuple(WordEffect(word, 1.5) for word in texts[0].split()))

    async def divide(self, decision: Decision, texts: Sequence[str]) -> list[Passage]:
        """A passage for each line that begins with the name of an adapter."""
        lines, passages = texts[0].splitlines(keepends=True), []
        for line in lines:
            start = passages[-1].end if passages else 0
            passages.append(Passage(start, start + len(line), Routing.of({line.split()[0]: 1.0})))
        return passages

    async def decode(self, ids: Sequence[int]) -> str:
        self.decoded += 1
        return " ".join(("sql", "cron", "dates")[token] for token in ids)

    def refused(self) -> None:
        return None

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[tuple[Piece, ...], None]:
        number = len(self.asked)
        self.asked.append(request)
        source = request.source
        if isinstance(source, TokenIds):
            text = await self.decode(source.ids)
        else:
            text = source if isinstance(source, str) else source[-1].content
        try:
            words = text.split(" ")
            for index, word in enumerate(words):
                await asyncio.sleep(0)
                if self.fail is not None and index == self.fail_after and self.fail_number in (None, number):
                    raise self.fail
                if index == self.stall_after:
                    await self._stall()
                token = TokenText(f"{word} ", f"{word} ".encode(), -0.5)
                asked = request.sampling.logprobs
                logprob = Logprob(token, (token,)[:asked], sum(len(word) + 1 for word in words[:index]))
                yield (Delta(f"{word} ", () if asked is None else (logprob,)),)
            yield (Finished("stop", 7, len(words), (Span(0, 7 + len(words), request.mix),)),)
        finally:
            self.closed += 1

    async def _stall(self) -> None:
        if self.clock_leaps:
            loop = asyncio.get_running_loop()
            clock = loop.time
            loop.time = lambda: clock() + LIMITS.request_timeout_s  # type: ignore[method-assign]
        await asyncio.Event().wait()


def chat(text: str = "make sql", **changes: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": text}]} | changes


def refused(answer: Any, status: int, param: str | None, code: str) -> str:
    """Checks the shape of an error and returns its message."""
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code), error
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in error["message"]
    return str(error["message"])
