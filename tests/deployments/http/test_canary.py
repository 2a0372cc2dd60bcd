"""The HTTP API over real banks in a real store: a canary and a shadow beside the bank that serves, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.args import RoutingArgs
from deployments.http.access import TOKEN_VARIABLE, Access
from deployments.http.admin import CanaryBank, ShadowBank
from deployments.http.app import create_app
from dlp_core.bank.canary import promote, start_canary, start_shadow, stop_canary, stop_shadow
from dlp_core.bank.follower import BankFollower
from dlp_core.bank.manifest import BankManifest, Shadow
from dlp_core.bank.publish import publish
from dlp_core.bank.rollout import Picked, Rollout, ShadowCounts
from dlp_core.decision import Decision, RoutingOptions, decide
from dlp_core.errors import AdapterMissing, EngineFailed, InvalidRequest
from dlp_core.fleet.trial import Outcome
from dlp_core.generation.messages import GenerationRequest, Piece
from dlp_core.store.memory import MemoryStore
from tests.support.banks import BASE_ID, write_bank
from tests.support.echo import LIMITS, EchoService, WordRouting, chat
from tests.support.waiting import async_wait_for

TOKEN = "admin-token-0123456789"
NAMES = {"one": ["cron", "sql"], "two": ["cron", "dates"], "three": ["sql"]}
"""Adapters of the banks."""


class BankService(EchoService):
    """An echo over the banks of a store. A router chooses the words of a text that are adapters of its bank."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__()
        self.store = store
        self.broken: dict[str, Exception] = {}
        """What the generations of a version raise at first."""
        self.slow: dict[str, asyncio.Event] = {}
        """What the routers of a version wait for."""

        async def prepare(bank: BankManifest) -> None:
            pass

        self.follower = BankFollower(store, poll_s=60, prepare=prepare)
        self.banks = Rollout(store, self.follower, replica="r")

    def bank(self) -> BankManifest:
        return self.follower.bank()

    def pick(self, *, version: str | None, user: str | None, key: str | None, request: str) -> Picked:
        return self.banks.pick(version=version, user=user, key=key, request=request)

    def ended(self, picked: Picked, outcome: Outcome) -> None:
        super().ended(picked, outcome)
        self.banks.ended(picked, outcome)

    def shadow(self) -> Shadow | None:
        return self.banks.shadow()

    def compared(self, version: str, counts: ShadowCounts) -> None:
        self.banks.compared(version, counts)

    def rollout(self) -> dict[str, Any]:
        return self.banks.report()

    async def set_canary(self, body: CanaryBank) -> None:
        if body.version is None:
            stop_canary(self.store)
        else:
            start_canary(self.store, body.version, share=body.share, sticky_by=body.sticky_by)
        await self.follower.look()

    async def set_shadow(self, body: ShadowBank) -> None:
        if body.version is None:
            stop_shadow(self.store)
        else:
            start_shadow(self.store, body.version, generate=body.generate)
        await self.follower.look()

    async def promote(self) -> None:
        promote(self.store)
        await self.follower.look()

    async def decide(self, picked: Picked, options: RoutingOptions, texts: Sequence[str]) -> Decision:
        bank = picked.bank
        if bank.version in self.slow:
            await self.slow[bank.version].wait()

        async def route(texts: Sequence[str]) -> Any:
            words = [word for word in texts[0].split() if word in NAMES[bank.version] and options.may_use(word)]
            return WordRouting({word: words.count(word) / len(words) for word in dict.fromkeys(words)})

        self.wishes.append(options)
        return await decide(bank, options, texts, route)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[tuple[Piece, ...], None]:
        if request.bank in self.broken:
            raise self.broken[request.bank]
        async for pieces in super().generate(request):
            yield pieces


@pytest.fixture
async def service(request: pytest.FixtureRequest, tmp_path: Path) -> BankService:
    store = MemoryStore(request.node.name)
    for seed, (version, names) in enumerate(NAMES.items()):
        publish(store, write_bank(tmp_path / version, names, seed=seed), version=version, stage=version != "one")
    service = BankService(store)
    await service.follower.look()
    return service


@pytest.fixture
async def http(service: BankService, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[httpx.AsyncClient, None]:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    app = create_app(service, routing=RoutingArgs(), limits=LIMITS, access=Access())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://server/v1", headers=headers) as client:
        yield client


async def ask(http: httpx.AsyncClient, text: str = "write sql", **changes: Any) -> dict[str, Any]:
    answer = await http.post("/chat/completions", json=chat(text, **changes))
    return {"status": answer.status_code, **answer.json()}


async def banks(http: httpx.AsyncClient, requests: int = 60, **changes: Any) -> set[str]:
    """The versions that answer."""
    replies = [await ask(http, **changes) for _ in range(requests)]
    assert {reply["status"] for reply in replies} == {200}
    return {reply["dlp"]["bank"] for reply in replies}


async def test_a_share_of_the_requests_gets_the_canary(http: httpx.AsyncClient, service: BankService) -> None:
    assert await banks(http, text="say cron") == {"one"}
    started = await http.post("/bank/canary", json={"version": "two", "share": 0.5})
    assert (started.status_code, started.json()["canary"]["version"]) == (200, "two")
    assert await banks(http, text="say cron") == {"one", "two"}
    for user in ("ada", "bob", "eve"):
        assert len(await banks(http, 10, text="say cron", user=user)) == 1
        body = chat("say cron", user=user)
        routed = (await http.post("/route", json=body)).json()["bank"]
        assert routed == (await ask(http, "say cron", user=user))["dlp"]["bank"]
    await service.banks.turn()
    shown = (await http.get("/bank")).json()
    assert (shown["version"], shown["rollout"]["serving"]["version"]) == ("one", "one")
    counts = shown["rollout"]["canary"]["counts"]
    assert counts["serving"]["requests"] + counts["canary"]["requests"] == 60 + 3 * 10 + 3
    assert (await http.post("/bank/canary", json={"stop": True})).json()["canary"] is None
    assert await banks(http, text="say cron") == {"one"}


async def test_a_version_can_be_asked_for(http: httpx.AsyncClient, service: BankService) -> None:
    await http.post("/bank/canary", json={"version": "two"})
    await http.post("/bank/shadow", json={"version": "three"})
    for version in ("one", "two", "three"):
        reply = await ask(http, dlp={"bank": version})
        assert reply["dlp"]["bank"] == version
    for body in (chat(dlp={"bank": "four"}), chat(dlp={"bank": "four"}, stream=True)):
        refused = await http.post("/chat/completions", json=body)
        error = refused.json()["error"]
        assert (refused.status_code, error["param"], error["code"]) == (404, "dlp.bank", "model_not_found")
        assert "in use: one, two, three" in error["message"]
    assert (await http.post("/route", json={"text": "sql", "dlp": {"bank": "two"}})).json()["reason"] == "none_of_these"
    assert (await ask(http, model="sql", dlp={"bank": "two"}))["status"] == 404, "it was asked for"


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_canary_fails_at_the_serving_bank_answers_and_the_canary_ends(
    http: httpx.AsyncClient, service: BankService, *, stream: bool
) -> None:
    await http.post("/bank/canary", json={"version": "two", "share": 0.5})
    service.broken["two"] = AdapterMissing("adapter 'cron' is not in the store")
    for _ in range(80):
        answer = await http.post("/chat/completions", json=chat("say cron", stream=stream))
        assert answer.status_code == 200
        assert '"bank": "one"' in answer.text or '"bank":"one"' in answer.text
        assert "say" in answer.text
    assert service.closed == 80, "each answer was generated once"
    await service.banks.turn()
    shown = (await http.get("/bank")).json()["rollout"]
    assert shown["canary"] is None
    assert shown["canary_end"]["outcome"] == "rolled_back"
    assert shown["canary_end"]["reason"].startswith("errors: ")


async def test_an_adapter_that_the_canary_lacks_is_the_serving_banks(
    http: httpx.AsyncClient, service: BankService
) -> None:
    await http.post("/bank/canary", json={"version": "two", "share": 0.5})
    assert await banks(http, model="sql") == {"one"}
    assert {outcome.error for role, outcome in service.outcomes if role == "canary"} == {True}
    assert {outcome.error for role, outcome in service.outcomes if role == "serving"} == {False}
    assert BASE_ID in (await http.get("/models")).text


async def test_other_failures_are_the_requests_and_count(http: httpx.AsyncClient, service: BankService) -> None:
    await http.post("/bank/canary", json={"version": "two", "share": 0.5})
    service.broken["two"] = EngineFailed("gone")
    statuses = {(await ask(http, "say cron"))["status"] for _ in range(40)}
    assert statuses == {200, 503}
    errors = {role: {one.error for who, one in service.outcomes if who == role} for role in ("canary", "serving")}
    assert errors == {"canary": {True}, "serving": {False}}


async def test_what_became_of_a_request(http: httpx.AsyncClient, service: BankService) -> None:
    await ask(http, "write sql", n=2)
    await ask(http, "hello")
    await ask(http, "write sql", max_tokens=-1)
    service.fail = InvalidRequest("too long")
    await ask(http, "write sql")
    [served, abstained, refused] = [outcome for _, outcome in service.outcomes]
    assert served.seconds is not None
    assert (served.abstained, served.error) == (False, False)
    assert (abstained.abstained, abstained.error) == (True, False)
    assert refused == Outcome()


async def test_the_shadow_is_compared_and_answers_nobody(http: httpx.AsyncClient, service: BankService) -> None:
    await http.post("/bank/shadow", json={"version": "three"})
    assert await banks(http, 3, text="write sql") == {"one"}  # three has sql
    assert await banks(http, 2, text="say cron") == {"one"}  # and no cron
    await ask(http, model="sql")  # nobody routes that

    await compared(service, 5)
    [shadow] = [(await http.get("/bank")).json()["rollout"]["shadow"]]
    assert (shadow["version"], shadow["generate"]) == ("three", False)
    assert shadow["counts"] == {
        "mixes": 5,
        "same_mixes": 3,
        "answers": 0,
        "same_answers": 0,
        "failed": 0,
        "skipped": 0,
    }
    assert {request.bank for request in service.asked} == {"one"}
    assert (await http.post("/bank/shadow", json={"stop": True})).json()["shadow"] is None


@pytest.mark.parametrize("stream", [False, True])
async def test_its_answers_are_compared_where_that_is_asked_for(
    http: httpx.AsyncClient, service: BankService, *, stream: bool
) -> None:
    await http.post("/bank/shadow", json={"version": "three", "generate": True})
    await http.post("/chat/completions", json=chat("write sql", stream=stream))
    await compared(service, 1, answers=1)
    await http.post("/chat/completions", json=chat("write sql", stream=stream, temperature=1.0))
    await compared(service, 2, answers=1)
    [served, shadowed, sampled] = service.asked
    assert (served.bank, shadowed.bank, sampled.bank) == ("one", "three", "one")
    assert (shadowed.source, shadowed.sampling, shadowed.stream) == (served.source, served.sampling, False)
    report = service.rollout()["shadow"]["counts"]
    assert (report["answers"], report["same_answers"]) == (1, 1), "an echo says the same"


async def test_a_shadow_that_hangs_or_fails_hurts_nobody(http: httpx.AsyncClient, service: BankService) -> None:
    service.slow["three"] = asyncio.Event()
    await http.post("/bank/shadow", json={"version": "three", "generate": True})
    assert await banks(http, 20) == {"one"}
    await service.banks.turn()
    counts = service.rollout()["shadow"]["counts"]
    assert (counts["mixes"], counts["skipped"]) == (0, 12), "eight wait for its router"
    service.broken["three"] = EngineFailed("gone")
    service.slow["three"].set()
    await compared(service, 8)
    await async_wait_for(lambda: failures(service) == 8, "failures of its generations")
    assert await banks(http, 3) == {"one"}


def failures(service: BankService) -> int:
    return service.banks._compared.failed


async def compared(service: BankService, mixes: int, *, answers: int = 0) -> None:
    """Waits until so many comparisons were made, and turns."""
    await async_wait_for(
        lambda: (service.banks._compared.mixes, service.banks._compared.answers) == (mixes, answers), "comparisons"
    )
    await service.banks.turn()


async def test_admin_routes(http: httpx.AsyncClient) -> None:
    for path, body, status, param in (
        ("/bank/canary", {}, 400, "version"),
        ("/bank/canary", {"version": "two", "stop": True}, 400, "version"),
        ("/bank/canary", {"version": "two", "share": 1.0}, 400, "share"),
        ("/bank/canary", {"version": "two", "sticky_by": "moon"}, 400, "sticky_by"),
        ("/bank/canary", {"version": "never"}, 404, None),
        ("/bank/canary", {"version": "one"}, 400, None),
        ("/bank/canary", {"stop": True}, 400, None),
        ("/bank/shadow", {"stop": True}, 400, None),
        ("/bank/promote", {}, 400, None),
        ("/bank/promote", {"force": True}, 400, "force"),
    ):
        answer = await http.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), (path, body, answer.text)
    await http.post("/bank/canary", json={"version": "two", "share": 0.2})
    promoted = (await http.post("/bank/promote")).json()
    assert (promoted["serving"]["version"], promoted["serving"]["previous"]) == ("two", "one")
    assert promoted["canary_end"]["outcome"] == "promoted"


async def test_a_key_that_sees_a_part_of_the_bank_sees_nothing_of_a_rollout(
    service: BankService, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(
        'keys: [{name: all, key: "all-0123456789abcd"}, {name: sql, key: "sql-0123456789abcd", adapters: [sql]}]'
    )
    start_canary(service.store, "two", share=0.5, sticky_by="key")
    await service.follower.look()
    app = create_app(service, routing=RoutingArgs(), limits=LIMITS, access=Access(keys_file=keys))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server/v1") as http:
        for name, seen in (("all", True), ("sql", False)):
            headers = {"authorization": f"Bearer {name}-0123456789abcd"}
            assert ("rollout" in (await http.get("/bank", headers=headers)).json()) == seen
            answers = [
                await http.post("/chat/completions", json=chat("hello", user=f"user-{n}"), headers=headers)
                for n in range(20)
            ]
            assert len({answer.json()["dlp"]["bank"] for answer in answers}) == 1, "a key stays with one version"
