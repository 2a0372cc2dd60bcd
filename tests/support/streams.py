"""Clients that listen to streams at the same time, for tests of the application on a cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from examples.tiny.build import TASKS
from tests.support.application import Application
from tests.support.waiting import HANG_S


@dataclass
class Heard:
    """What one client heard of its stream."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    dlp: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    done: bool = False


def question(number: int, tokens: int, **changes: Any) -> dict[str, Any]:
    name = sorted(TASKS)[number % 3]
    body = {"model": name, "prompt": TASKS[name].format(number), "max_tokens": tokens, "stream": True}
    return body | changes


def hear(app: Application, body: dict[str, Any], heard: Heard) -> Heard:
    with httpx.stream("POST", f"{app.url}/v1/completions", json=body, timeout=HANG_S) as reply:
        heard.status, heard.headers = reply.status_code, reply.headers
        if reply.status_code != 200:
            heard.error = json.loads(reply.read())["error"]
        for line in reply.iter_lines():
            if line == "data: [DONE]":
                heard.done = True
            elif line:
                event = json.loads(line.removeprefix("data: "))
                heard.error = event.get("error")
                heard.text += "" if heard.error else event["choices"][0]["text"]
                heard.dlp = event.get("dlp", heard.dlp)
    return heard


@contextmanager
def streams(app: Application, bodies: list[dict[str, Any]]) -> Iterator[list[Heard]]:
    """All of them at once; the block runs meanwhile, and its end waits for theirs."""
    heard = [Heard() for _ in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        running = [pool.submit(hear, app, body, one) for body, one in zip(bodies, heard, strict=True)]
        yield heard
        for one in running:
            one.result()
