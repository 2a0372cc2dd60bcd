"""A load step on a Ray cluster: FusedBackbone goes from one replica to three and back, and no request notices. The
router pool goes to zero and comes back. What the policies decide: test_autoscaling*.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import httpx
import pytest

from dlp_core.bank.publish import publish
from dlp_core.store.opening import open_store
from examples.tiny.build import TASKS
from tests.support.application import BANK, START_S, Application, ask, back_to_bank_one, running, serving
from tests.support.waiting import HANG_S, wait_for

QUICK = {"upscale_delay_s": 2, "downscale_delay_s": 6, "look_back_period_s": 2, "metrics_interval_s": 0.5}
SCALING = {
    "FusedBackbone": QUICK | {"max_replicas": 3, "target_ongoing_requests": 4},
    "Router": QUICK | {"min_replicas": 0, "max_replicas": 2, "downscale_delay_s": 3},
}
CLIENTS = 11  # of which one replica should have 4
STREAMS = 3  # which one replica can do, with room to spare


@pytest.fixture(scope="module")
def app(folder: Path) -> Iterator[Application]:
    with running(folder, queue=16, scaling=SCALING) as found:
        yield found


@dataclass
class Counts:
    """Replicas of a deployment: the number Serve aims at, and those that run."""

    target: list[int] = field(default_factory=list)
    running: list[int] = field(default_factory=list)

    def steps(self) -> list[int]:
        return [number for number, _ in groupby(self.target)]


def replicas(name: str) -> tuple[int, int]:
    from ray import serve

    details = serve.context._get_global_client().get_serve_details()
    deployment = details["applications"]["dlp"]["deployments"][name]
    states = [replica["state"] for replica in deployment["replicas"]]
    return deployment["target_num_replicas"], states.count("RUNNING")


@contextmanager
def watched(name: str) -> Iterator[Counts]:
    """The counts from the beginning of the block to its end, several a second."""
    counts, over = Counts(), threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            target, up = replicas(name)
            counts.target.append(target)
            counts.running.append(up)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield counts
        finally:
            over.set()
            watching.result()


@contextmanager
def load(app: Application, clients: int, tokens: int) -> Iterator[list[str]]:
    """So many clients, each with one request after another. Yields how each request that is over ended."""
    ends: list[str] = []
    over = threading.Event()

    def client(number: int) -> None:
        body = {"model": sorted(TASKS)[number % 3], "prompt": "the user", "max_tokens": tokens}
        with httpx.Client(timeout=HANG_S) as http:
            while not over.is_set():
                answer = http.post(f"{app.url}/v1/completions", json=body)
                ends.append(answer.json()["choices"][0]["finish_reason"] if answer.is_success else answer.text)

    with ThreadPoolExecutor(clients) as pool:
        busy: list[Future[None]] = [pool.submit(client, number) for number in range(clients)]
        try:
            yield ends
        finally:
            over.set()
            for one in busy:
                one.result()


def test_a_load_step_adds_replicas_and_its_end_removes_them(app: Application) -> None:
    """Long streams run on while replicas come and go: whichever is removed finishes what it has begun."""
    with watched("FusedBackbone") as counts, load(app, STREAMS, tokens=1500) as streamed:
        wait_for(lambda: replicas("FusedBackbone") == (1, 1), "quiet deployment")
        with load(app, CLIENTS, tokens=100) as answered:
            wait_for(lambda: replicas("FusedBackbone") == (3, 3), "three replicas", START_S)
            time.sleep(8)  # longer than the delay: they stay
        wait_for(lambda: replicas("FusedBackbone") == (1, 1), "one replica again")
        time.sleep(4)
    assert set(streamed) == set(answered) == {"length"}
    assert counts.steps() in ([1, 3, 2, 1], [1, 2, 3, 2, 1])
    height = counts.running.index(3)
    assert counts.running[: height + 1] == sorted(counts.running[: height + 1])
    assert counts.running[height:] == sorted(counts.running[height:], reverse=True)


def test_the_router_pool_goes_to_zero_and_a_request_wakes_it(app: Application) -> None:
    assert ask(app, TASKS["sql"].format(1))["status"] == 200
    wait_for(lambda: replicas("Router") == (0, 0), "empty router pool")
    assert ask(app, "hello", model="sql")["status"] == 200
    assert replicas("Router") == (0, 0), "a named model needs no router"
    reply = ask(app, TASKS["sql"].format(7))
    assert reply["status"] == 200
    assert reply["dlp"]["spans"][0]["mix"][0]["adapter"] == "sql"
    assert replicas("Router")[0] == 1


def test_a_bank_takes_over_while_the_router_pool_is_empty(app: Application) -> None:
    """It is prepared in a router replica all the same: a router that cannot be loaded must not take over."""
    wait_for(lambda: replicas("Router") == (0, 0), "empty router pool")
    publish(open_store(BANK), app.folder / "bank", version="two")
    wait_for(lambda: serving(app) == "two", "bank two")
    assert ask(app, TASKS["dates"].format(2))["dlp"]["bank"] == "two"
    back_to_bank_one(app)
