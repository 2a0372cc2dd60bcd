"""The bank changes under traffic, by the store and by the admin routes; tenants with keys of their own.

What 16 concurrent streams say while banks come and go is compared with what they say while nothing happens.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from dlp_core.bank.publish import publish, rollback
from dlp_core.store.opening import open_store
from examples.tiny.build import BASE, TASKS
from examples.tiny.model import tiny_tokenizer
from tests.support.application import (
    ADMIN_TOKEN,
    BANK,
    Application,
    ask,
    back_to_bank_one,
    health,
    running,
    serving,
    text_of,
)
from tests.support.banks import write_adapter
from tests.support.waiting import HANG_S, wait_for

STREAMS = 16
ALL, DATES = "key-of-all-0123456789", "key-of-dates-0123456789"


@pytest.fixture(scope="module")
def app(folder: Path) -> Iterator[Application]:
    keys = folder / "keys.yaml"
    tenants = [{"name": "all", "key": ALL}, {"name": "dates", "key": DATES, "adapters": ["dates"]}]
    keys.write_text(json.dumps({"keys": tenants}))
    with running(folder, queue=STREAMS, access={"keys_file": str(keys)}) as found:
        yield found


def admin(app: Application, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(
        f"{app.url}/v1{path}", json=body, headers={"authorization": f"Bearer {ADMIN_TOKEN}"}, timeout=HANG_S
    )


def stream(app: Application, number: int) -> tuple[str, str, str]:
    """Text, mix and bank of one stream. Raises where it does not end as it should."""
    name = sorted(TASKS)[number % 3]
    body: dict[str, Any] = {"model": "auto", "prompt": TASKS[name].format(number), "max_tokens": 40, "stream": True}
    if number % 4 == 3:
        weights = {name: 0.7} | {"sql": 0.2}
        body["dlp"] = {"adapters": [{"name": one, "weight": weight} for one, weight in weights.items()]}
    text, last = "", {"spans": [], "bank": ""}
    with httpx.stream(
        "POST", f"{app.url}/v1/completions", json=body, timeout=HANG_S, headers={"authorization": f"Bearer {ALL}"}
    ) as reply:
        assert reply.status_code == 200, reply.read()
        for line in reply.iter_lines():
            if line and line != "data: [DONE]":
                event = json.loads(line.removeprefix("data: "))
                text += event["choices"][0]["text"]
                last = event.get("dlp", last)
            ended = line == "data: [DONE]" or not line
        assert ended
    mix = json.dumps([span["mix"] for span in last["spans"]])
    return text, mix, last["bank"]


def test_streams_do_not_notice_a_publish_and_a_rollback(app: Application) -> None:
    """Two banks that agree about the adapters in use come and go; every answer is what it is without them."""
    folder = shutil.copytree(app.folder / "bank", app.folder / "wider")
    shutil.copytree(folder / "adapters" / "sql", folder / "adapters" / "spare")
    (folder / "bank.json").write_text(json.dumps({"base_model": BASE, "unrouted": ["spare"]}))
    heard: list[tuple[int, tuple[str, str], str]] = []
    over = threading.Event()

    def client(number: int) -> None:
        """One request after the other."""
        while not over.is_set():
            text, mix, bank = stream(app, number)
            heard.append((number, (text, mix), bank))

    def is_heard(version: str) -> None:
        """Waits until a stream that ends now has run on that bank."""
        known = len(heard)
        wait_for(lambda: version in {bank for _, _, bank in heard[known:]}, f"stream on bank {version}")

    with ThreadPoolExecutor(STREAMS) as pool:
        quiet = list(pool.map(lambda number: stream(app, number)[:2], range(STREAMS)))
        clients = [pool.submit(client, number) for number in range(STREAMS)]
        try:
            for _ in range(2):
                reply = admin(app, "/bank/publish", {"folder": str(folder), "version": "wider"})
                assert reply.status_code == 200, reply.text
                assert serving(app) == "wider"
                is_heard("wider")
                assert admin(app, "/bank/rollback", {"version": "one"}).json()["version"] == "one"
                is_heard("one")
        finally:
            over.set()
        for one in clients:
            one.result()
    assert {number for number, _, _ in heard} == set(range(STREAMS))
    assert all(said == quiet[number] for number, said, _ in heard)


def test_a_publish_to_the_store_is_seen(app: Application) -> None:
    folder = shutil.copytree(app.folder / "bank", app.folder / "later", ignore=shutil.ignore_patterns("router"))
    shutil.rmtree(folder / "adapters" / "cron")
    publish(open_store(BANK), folder, version="later")
    wait_for(lambda: serving(app) == "later", "later bank")
    assert ask(app, "hello", key=ALL, model="cron")["status"] == 404
    back_to_bank_one(app)


def test_a_bank_that_cannot_be_loaded_is_refused_and_the_old_one_serves(app: Application) -> None:
    before = text_of(ask(app, "hello", key=ALL, model="sql"))
    folder = shutil.copytree(app.folder / "bank", app.folder / "bad")
    shutil.rmtree(folder / "adapters" / "sql")
    write_adapter(folder / "adapters" / "sql", base_model_name_or_path=BASE)  # of 8 features, and the model has 64
    publish(open_store(BANK), folder, version="bad")  # nobody asked this machine what fits

    def refusal() -> dict[str, str] | None:
        report: dict[str, str] | None = health(app).get("refused")
        return report

    wait_for(lambda: refusal() is not None, "refusal")
    report = refusal()
    assert report is not None
    assert report["version"] == "bad"
    assert "sql" in report["reason"]
    assert text_of(ask(app, "hello", key=ALL, model="sql")) == before
    assert serving(app) == "one"
    rollback(open_store(BANK), "one")
    wait_for(lambda: refusal() is None, "end of the refusal")

    said = admin(app, "/bank/publish", {"folder": str(folder), "version": "bad2"})
    assert (said.status_code, said.json()["error"]["code"]) == (422, "adapter_refused")
    assert refusal() is None  # it was asked before anything was published


def test_a_canary_serves_its_share_and_one_that_fails_is_rolled_back_without_a_lost_request(app: Application) -> None:
    """Streams go on while two versions serve, and while one that has neither router nor `sql` is found out."""

    def rollout() -> dict[str, Any]:
        answer = httpx.get(f"{app.url}/v1/bank", headers={"authorization": f"Bearer {ALL}"}, timeout=HANG_S)
        found: dict[str, Any] = answer.json()["rollout"]
        return found

    same = shutil.copytree(app.folder / "bank", app.folder / "same")
    shutil.copytree(same / "adapters" / "sql", same / "adapters" / "spare")
    (same / "bank.json").write_text(json.dumps({"base_model": BASE, "unrouted": ["spare"]}))
    poor = shutil.copytree(app.folder / "bank", app.folder / "poor", ignore=shutil.ignore_patterns("router"))
    shutil.rmtree(poor / "adapters" / "sql")
    for version, folder in (("same", same), ("poor", poor)):
        staged = admin(app, "/bank/publish", {"folder": str(folder), "version": version, "stage": True})
        assert staged.status_code == 200, staged.text
    assert serving(app) == "one"
    heard: list[tuple[int, tuple[str, str], str]] = []
    over = threading.Event()

    def client(number: int) -> None:
        while not over.is_set():
            text, mix, bank = stream(app, number)
            heard.append((number, (text, mix), bank))

    with ThreadPoolExecutor(4) as pool:
        quiet = list(pool.map(lambda number: stream(app, number)[:2], range(4)))
        clients = [pool.submit(client, number) for number in range(4)]
        try:
            started = admin(app, "/bank/canary", {"version": "same", "share": 0.5})
            assert started.status_code == 200, started.text
            wait_for(lambda: {bank for _, _, bank in heard} == {"one", "same"}, "answers of both versions")
            assert ask(app, "hello", key=ALL, model="spare", dlp={"bank": "same"})["dlp"]["bank"] == "same"
            refused = admin(app, "/bank/publish", {"folder": str(poor), "version": "poor"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
            assert admin(app, "/bank/canary", {"stop": True}).json()["canary"] is None
            started = admin(app, "/bank/canary", {"version": "poor", "share": 0.5})
            assert started.json()["canary"]["state"] in ("running", "alarm"), started.text
            wait_for(lambda: rollout()["canary"] is None, "end of the canary that fails")
        finally:
            over.set()
        for one in clients:
            one.result()
    end = rollout()["canary_end"]
    assert (end["version"], end["outcome"]) == ("poor", "rolled_back")
    assert end["reason"].startswith("errors: ")
    assert serving(app) == "one"
    assert {number for number, _, _ in heard} == set(range(4))
    assert all(said == quiet[number] for number, said, _ in heard)


def test_an_adapter_is_loaded_and_unloaded_with_vllms_bodies(app: Application) -> None:
    path = str(app.folder / "bank" / "adapters" / "sql")
    reply = admin(app, "/load_lora_adapter", {"lora_name": "again", "lora_path": path})
    assert (reply.status_code, reply.text) == (200, "Success: LoRA adapter 'again' added successfully.")
    assert text_of(ask(app, "hello", key=ALL, model="again")) == text_of(ask(app, "hello", key=ALL, model="sql"))
    assert admin(app, "/load_lora_adapter", {"lora_name": "again", "lora_path": path}).status_code == 400
    assert admin(app, "/unload_lora_adapter", {"lora_name": "again"}).status_code == 200
    assert ask(app, "hello", key=ALL, model="again")["status"] == 404
    assert admin(app, "/unload_lora_adapter", {"lora_name": "again"}).status_code == 404
    assert admin(app, "/load_lora_adapter", {"lora_name": "x", "lora_path": "/nowhere"}).status_code == 404
    back_to_bank_one(app)


def test_an_adapters_own_chat_template_renders_the_chats_it_serves_alone(app: Application) -> None:
    folder = shutil.copytree(app.folder / "bank" / "adapters" / "sql", app.folder / "spoken")
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[reply]"
    (folder / "chat_template.jinja").write_text(template)
    assert admin(app, "/load_lora_adapter", {"lora_name": "spoken", "lora_path": str(folder)}).status_code == 200
    alone = ask(app, "hello", key=ALL, model="spoken")
    own = tiny_tokenizer()("[user] hello\n[reply]").input_ids
    assert alone["usage"]["prompt_tokens"] == len(own) != len(app.chat_ids("hello"))
    assert text_of(alone) == app.expected(own, {"sql": 1.0}, 12)
    both = [{"name": "spoken", "weight": 0.5}, {"name": "cron", "weight": 0.5}]
    mixed = ask(app, "hello", key=ALL, dlp={"adapters": both})
    assert text_of(mixed) == app.expected(app.chat_ids("hello"), {"sql": 0.5, "cron": 0.5}, 12)

    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(endless)
    assert admin(app, "/load_lora_adapter", {"lora_name": "endless", "lora_path": str(folder)}).status_code == 200
    refused = ask(app, "hello", key=ALL, model="endless")
    assert (refused["status"], refused["error"]["code"]) == (422, "adapter_refused")
    assert text_of(ask(app, "hello", key=ALL, model="spoken")) == text_of(alone)

    (folder / "added_tokens.json").write_text(json.dumps({"<|x|>": 99999}))
    said = admin(app, "/load_lora_adapter", {"lora_name": "wordy", "lora_path": str(folder)})
    assert (said.status_code, said.json()["error"]["code"]) == (422, "adapter_refused")
    assert "<|x|>" in said.text
    back_to_bank_one(app)


def test_an_adapter_that_is_loaded_with_examples_is_routed_to(app: Application) -> None:
    examples = [f"translate {count} {what} into french" for count in range(4) for what in "cats dogs cows hens".split()]
    path = str(app.folder / "bank" / "adapters" / "sql")
    body = {"lora_name": "french", "lora_path": path, "examples": examples}
    assert admin(app, "/load_lora_adapter", body).status_code == 200
    assert ask(app, "translate 9 pigs into french", key=ALL)["headers"]["x-dlp-adapters"].startswith("french=")
    for name in TASKS:
        assert ask(app, TASKS[name].format(3), key=ALL)["headers"]["x-dlp-adapters"].startswith(f"{name}=")
    assert admin(app, "/unload_lora_adapter", {"lora_name": "french"}).status_code == 200
    assert ask(app, TASKS["sql"].format(3), key=ALL)["headers"]["x-dlp-adapters"] == "sql=1.00"
    back_to_bank_one(app)


def test_a_tenant_meets_only_its_own_adapters(app: Application) -> None:
    assert ask(app, "hello", key="no-key-of-anybody-0123")["status"] == 401
    assert ask(app, "hello", key=DATES, model="sql")["status"] == 404
    own = ask(app, TASKS["dates"].format(5), key=DATES)
    assert own["headers"]["x-dlp-adapters"] == "dates=1.00"
    other = ask(app, TASKS["sql"].format(5), key=DATES)
    assert "sql" not in other["headers"]["x-dlp-adapters"]
    route = httpx.post(
        f"{app.url}/v1/route",
        json={"text": TASKS["sql"].format(5)},
        headers={"authorization": f"Bearer {DATES}"},
        timeout=HANG_S,
    )
    assert set(route.json()["probabilities"]) == {"dates"}
    assert '"sql"' not in route.text
    mixed = ask(app, "One. Two.", key=DATES, dlp={"granularity": "sentence"})
    assert mixed["status"] == 200
    assert "sql" not in json.dumps(mixed["dlp"])


def test_no_key_is_in_a_log(app: Application) -> None:
    logs = Path("/tmp/ray/session_latest/logs")
    found = [path for path in logs.rglob("*.log") if path.is_file()]
    assert found
    for path in found:
        content = path.read_text(errors="replace")
        for secret in (ALL, DATES, ADMIN_TOKEN):
            assert secret not in content, f"{path.name} has a secret"
