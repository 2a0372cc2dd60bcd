"""What breaks while 16 streams run, and what their clients hear of it.

Two backbone replicas and two routers. What a stream should say is what it says while nothing breaks.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve
from ray.serve.schema import ServeDeploySchema

from benchmarks.measure.replicas import inside, replicas, stats
from dlp_core.bank.publish import publish
from dlp_core.store.local_s3 import LocalS3
from dlp_core.store.opening import open_store
from examples.tiny.build import BASE, TASKS
from tests.support.application import (
    BANK,
    START_S,
    Application,
    ask,
    back_to_bank_one,
    get,
    running,
    serving,
    text_of,
)
from tests.support.replicas import ENDLESS, accepted, slow_steps, wait_until_idle
from tests.support.streams import question, streams
from tests.support.waiting import HANG_S, wait_for

STREAMS = 16
QUEUE = STREAMS  # of each replica
LONG = 250  # tokens: seconds of them
ROUTING = {"timeout_s": HANG_S, "fallback": BASE}
ROUTER_S = 5
"""A router that is there answers sooner, even on a busy machine; who waits for one that is not waits so long."""


@pytest.fixture(scope="module")
def app(folder: Path) -> Iterator[Application]:
    engine = {"stall_seconds": HANG_S}
    scaling = {name: {"min_replicas": 2} for name in ("Router", "FusedBackbone")}
    with running(folder, queue=QUEUE, scaling=scaling, routing=ROUTING, engine=engine) as found:
        wait_for(lambda: all(len(replicas(name)) == 2 for name in ("Router", "FusedBackbone")), "replicas", START_S)
        yield found


@pytest.fixture(scope="module")
def said(app: Application) -> Callable[[int, int], list[str]]:
    """What the first `count` streams say in so many tokens while nothing breaks."""
    known: dict[tuple[int, int], list[str]] = {}

    def texts(count: int, tokens: int) -> list[str]:
        if (count, tokens) not in known:
            with streams(app, [question(number, tokens) for number in range(count)]) as heard:
                pass
            assert all(one.done and one.error is None for one in heard)
            known[count, tokens] = [one.text for one in heard]
        return known[count, tokens]

    return texts


# --- the cluster


@contextmanager
def hanging(server: LocalS3) -> Iterator[None]:
    """The store takes connections and answers nothing."""
    assert server._process is not None
    os.killpg(server._process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(server._process.pid, signal.SIGCONT)


def break_engine(replica_id: str, how: str) -> None:
    """Makes the next step of a replica's engine fail or last for ever."""

    def broken(engine: Any) -> None:
        def step() -> None:
            if how == "fails":
                raise RuntimeError("broken by the test")
            engine._batching.last_step -= HANG_S  # and so it lasts for ever already
            time.sleep(10_000)

        engine._batching._generation_step = step

    inside(replica_id, broken)


def deploy(app: Application, **args: Any) -> None:
    """Deploys again with other arguments, which replaces every replica. Returns when that is done."""
    config = copy.deepcopy(app.config)
    config["applications"][0]["args"] |= args
    before = {id for name in ("Ingress", "Router", "FusedBackbone") for id in replicas(name)}
    serve.context._get_global_client().deploy_apps(ServeDeploySchema.model_validate(config))

    def replaced() -> bool:
        now = {id for name in ("Ingress", "Router", "FusedBackbone") for id in replicas(name)}
        return serve.status().applications["dlp"].status == "RUNNING" and len(now) == len(before) and not before & now

    wait_for(replaced, "new replicas", START_S)


def whole() -> bool:
    return len(replicas("FusedBackbone")) == len(replicas("Router")) == 2


# --- tests


def test_a_backbone_lost_before_the_first_token_costs_nobody_an_answer(app: Application) -> None:
    """All streams are accepted and wait for an adapter from a store that hangs. Then a replica dies."""
    folder = shutil.copytree(app.folder / "bank", app.folder / "late", ignore=shutil.ignore_patterns("router"))
    (folder / "adapters" / "sql").rename(folder / "adapters" / "late")
    config = folder / "adapters" / "late" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 1}))  # so it is in no cache
    publish(open_store(BANK), folder, version="late")
    wait_for(lambda: serving(app) == "late", "bank late")
    mixes = [{"adapters": [{"name": "late", "weight": 1 + number / 10}]} for number in range(STREAMS)]
    bodies = [question(number, 20, model="auto", dlp=mix) for number, mix in enumerate(mixes)]
    with streams(app, bodies) as heard, hanging(app.server):
        wait_for(lambda: accepted() == STREAMS, "acceptance")
        lost, kept = replicas("FusedBackbone").items()
        os.kill(lost[1], signal.SIGKILL)
        wait_for(lambda: accepted() == STREAMS, "acceptance by the other")
        assert replicas("FusedBackbone")[kept[0]] == kept[1]
        assert not any(one.status for one in heard)
    assert all(one.done and one.error is None for one in heard)
    with streams(app, bodies) as again:
        pass
    assert [one.text for one in heard] == [one.text for one in again]
    assert len({one.text for one in heard}) > 3  # the weights make a difference
    back_to_bank_one(app)
    wait_for(whole, "two replicas", START_S)


@pytest.mark.parametrize("how", ["is killed", "fails", "stalls"])
def test_a_backbone_lost_after_the_first_token_ends_its_streams_with_an_error(
    app: Application, said: Callable[[int, int], list[str]], how: str
) -> None:
    """And only its own; each stream's text is a beginning of what it should say, and nothing twice."""
    expected = said(STREAMS, LONG)
    with streams(app, [question(number, LONG) for number in range(STREAMS)]) as heard:
        wait_for(lambda: all(one.text for one in heard), "first tokens")
        [lost, kept] = replicas("FusedBackbone").items()
        if how == "is killed":
            os.kill(lost[1], signal.SIGKILL)
        else:
            break_engine(lost[0], how)
    failed = [one for one in heard if one.error]
    assert 0 < len(failed) < STREAMS
    for one, text in zip(heard, expected, strict=True):
        if one.error:
            assert one.error["code"] == "engine_failed"
            assert not one.done
            assert text.startswith(one.text)
            assert len(one.text) < len(text)
        else:
            assert one.done
            assert one.text == text
    wait_for(whole, "new replica", START_S)
    now = replicas("FusedBackbone")
    assert kept[0] in now
    assert lost[0] not in now
    with streams(app, [question(number, LONG) for number in range(STREAMS)]) as heard:
        pass
    assert [one.text for one in heard] == expected


def test_a_router_that_dies_is_not_noticed(app: Application) -> None:
    replies: list[int] = []

    def routed(number: int) -> list[tuple[int, str, str]]:
        found = []
        for _ in range(12):
            name = sorted(TASKS)[number % 3]
            reply = ask(app, TASKS[name].format(number))
            found.append((reply["status"], reply["dlp"]["reason"], text_of(reply)))
            replies.append(number)
        return found

    with ThreadPoolExecutor(STREAMS) as pool:
        answers = [pool.submit(routed, number) for number in range(STREAMS)]
        wait_for(lambda: replies, "replies")
        lost, kept = replicas("Router").items()
        os.kill(lost[1], signal.SIGKILL)
        for answer in answers:
            assert len(set(answer.result())) == 1
            assert answer.result()[0][:2] == (200, "routed")
    wait_for(lambda: whole() and lost[0] not in replicas("Router"), "new router", START_S)
    assert kept[0] in replicas("Router")


@contextmanager
def no_routers() -> Iterator[None]:
    """Kills routers as they come."""
    with ThreadPoolExecutor(1) as pool:
        over = False

        def kill() -> None:
            while not over:
                for pid in replicas("Router").values():
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.05)

        killing = pool.submit(kill)
        try:
            wait_for(lambda: not replicas("Router"), "end of the routers")
            yield
        finally:
            over = True
            killing.result()


def test_the_store_goes_and_comes_back(app: Application, said: Callable[[int, int], list[str]]) -> None:
    """Streams on resident adapters go on; who needs another one is told 503 until the store is back."""
    expected = said(STREAMS, LONG)
    folder = shutil.copytree(app.folder / "bank", app.folder / "spare")
    shutil.copytree(folder / "adapters" / "sql", folder / "adapters" / "spare")
    (folder / "bank.json").write_text(json.dumps({"base_model": BASE, "unrouted": ["spare"]}))
    config = folder / "adapters" / "spare" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 2}))
    publish(open_store(BANK), folder, version="spare")
    wait_for(lambda: serving(app) == "spare", "bank spare")
    with streams(app, [question(number, LONG) for number in range(STREAMS)]) as heard:
        wait_for(lambda: all(one.text for one in heard), "first tokens")
        app.server.stop()
        try:
            refused = ask(app, "hello", model="spare")
            assert (refused["status"], refused["error"]["code"]) == (503, "adapter_unavailable")
            assert "spare" in refused["error"]["message"]
            assert get(app, "/health").status_code == 200
            assert [text_of(ask(app, "hello", model=name)) for name in TASKS]
        finally:
            app.server.start()
        assert ask(app, "hello", model="spare")["status"] == 200
    assert [one.text for one in heard] == expected
    back_to_bank_one(app)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_leaves_leaves_nothing_behind(app: Application, streaming: bool) -> None:
    """Its place, adapters and cache blocks are free at once."""

    async def come_and_go() -> None:
        async with httpx.AsyncClient(timeout=HANG_S) as http:
            bodies = [question(number, ENDLESS, stream=streaming) for number in range(STREAMS)]
            calls = [asyncio.create_task(http.post(f"{app.url}/v1/completions", json=body)) for body in bodies]
            await asyncio.to_thread(wait_for, lambda: sum(one.running for one in stats()) == STREAMS, "streams")
            busy = await asyncio.to_thread(stats)
            assert all(one.pinned and one.cache_free < 1 for one in busy)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    with slow_steps():
        asyncio.run(come_and_go())
        wait_until_idle()


def test_a_full_queue_refuses_and_disturbs_nobody(app: Application, said: Callable[[int, int], list[str]]) -> None:
    """QUEUE requests run in each replica, as many wait for one; whoever comes then is told when to come back."""
    room = 2 * 2 * QUEUE + 2  # and a link to each replica

    async def flood() -> tuple[list[httpx.Response], list[httpx.Response]]:
        """Answers of short requests, which find room or wait for it, and of as many as must be refused of those behind
        them: more than there is room for, and they would take minutes."""
        async with httpx.AsyncClient(timeout=HANG_S, limits=httpx.Limits()) as http:

            def call(body: dict[str, Any]) -> asyncio.Task[httpx.Response]:
                return asyncio.create_task(http.post(f"{app.url}/v1/completions", json=body))

            short = [call(question(0, 100, stream=False)) for _ in range(2 * STREAMS)]
            endless = {call(question(number, ENDLESS)) for number in range(room + STREAMS)}
            refused: list[httpx.Response] = []
            while len(refused) < STREAMS:
                answered, endless = await asyncio.wait(endless, return_when=asyncio.FIRST_COMPLETED)
                refused += [one.result() for one in answered]
            for one in endless:
                one.cancel()
            await asyncio.gather(*endless, return_exceptions=True)
            return await asyncio.gather(*short), refused

    expected = said(STREAMS, LONG)
    with streams(app, [question(number, LONG) for number in range(STREAMS)]) as heard:
        wait_for(lambda: all(one.text for one in heard), "first tokens")
        short, refused = asyncio.run(flood())
    assert [one.text for one in heard] == expected
    served = [one.json() for one in short if one.status_code == 200]
    assert served
    [text] = {one["choices"][0]["text"] for one in served}
    assert expected[0].startswith(text)
    for one in [*refused, *(one for one in short if one.status_code != 200)]:
        assert one.status_code == 429
        assert one.headers["retry-after"] == "1"
        assert one.json()["error"]["code"] == "queue_full"


# --- from here on a router is waited for for ROUTER_S


def test_a_drain_loses_nothing(app: Application, said: Callable[[int, int], list[str]]) -> None:
    """Every replica is replaced while streams run and more come."""
    expected, short = said(STREAMS, LONG), said(STREAMS, 20)
    with streams(app, [question(number, LONG) for number in range(STREAMS)]) as heard, ThreadPoolExecutor(1) as pool:
        wait_for(lambda: all(one.text for one in heard), "first tokens")
        deploying = pool.submit(deploy, app, routing=ROUTING | {"timeout_s": ROUTER_S})
        while not deploying.done():
            with streams(app, [question(number, 20) for number in range(4)]) as more:
                pass
            assert [(one.status, one.text, one.error) for one in more] == [(200, text, None) for text in short[:4]]
        deploying.result()
    assert [(one.text, one.error, one.done) for one in heard] == [(text, None, True) for text in expected]


def test_without_routers_the_fallback_serves_and_says_so(app: Application) -> None:
    plain = [text_of(ask(app, f"{TASKS['sql']} {number}", model=BASE)) for number in range(STREAMS)]
    with no_routers(), ThreadPoolExecutor(STREAMS) as pool:
        replies = list(pool.map(lambda number: ask(app, f"{TASKS['sql']} {number}"), range(STREAMS)))
        named = ask(app, "hello", model="sql")
        route = httpx.post(f"{app.url}/v1/route", json={"text": "hello"}, timeout=HANG_S).json()
    for reply, text in zip(replies, plain, strict=True):
        assert (reply["status"], reply["dlp"]["reason"]) == (200, "router_unavailable")
        assert reply["headers"]["x-dlp-adapters"] == "base"
        assert text_of(reply) == text
    assert named["status"] == 200
    assert (route["reason"], route["mix"], route["probabilities"]) == ("router_unavailable", [], None)
    wait_for(lambda: ask(app, TASKS["sql"].format(1))["dlp"]["reason"] == "routed", "router", START_S)
    wait_for(whole, "two routers", START_S)


# --- from here on there is no fallback, and a request has ten seconds


@pytest.fixture(scope="module")
def hurried(app: Application) -> Application:
    deploy(app, routing={"timeout_s": ROUTER_S}, limits={"request_timeout_s": 10})
    return app


def test_without_routers_and_fallback_it_is_503(hurried: Application) -> None:
    with no_routers(), ThreadPoolExecutor(STREAMS) as pool:
        replies = list(pool.map(lambda number: ask(hurried, f"{TASKS['sql']} {number}"), range(STREAMS)))
        named = ask(hurried, "hello", model="sql")
    assert {(reply["status"], reply["error"]["code"]) for reply in replies} == {(503, "router_unavailable")}
    assert {reply["headers"]["retry-after"] for reply in replies} == {"1"}
    assert named["status"] == 200
    wait_for(whole, "two routers", START_S)


def test_a_deadline_ends_the_work(hurried: Application) -> None:
    """Of streams and of whole answers."""
    bodies = [question(number, ENDLESS, stream=number % 2 == 0) for number in range(STREAMS)]
    with slow_steps():
        with streams(hurried, bodies) as heard:
            pass
        wait_until_idle()
    for one, body in zip(heard, bodies, strict=True):
        assert one.error is not None
        assert one.error["code"] == "deadline_exceeded"
        assert one.status == (200 if one.text else 504)
        assert not one.done
        assert body["stream"] or not one.text
    assert any(one.text for one in heard)
