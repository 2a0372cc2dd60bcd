"""The whole application with vLLM in its backbone replicas, whose environment is another one.

DLP_TEST_VLLM_PYTHON names the Python of that environment (`make vllm` builds .venv-vllm/bin/python).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measure.replicas import inside, lives, replicas
from dlp_core.bank.publish import publish
from dlp_core.store.opening import open_store
from examples.tiny.build import BASE, TASKS, write_adapter
from examples.tiny.model import tiny_model
from tests.support.application import (
    BANK,
    START_S,
    Application,
    ask,
    back_to_bank_one,
    health,
    running,
    serving,
    text_of,
)
from tests.support.replicas import wait_until_idle
from tests.support.streams import question, streams
from tests.support.waiting import wait_for

PYTHON = os.environ.get("DLP_TEST_VLLM_PYTHON")
STREAMS = 8
TOKENS = 24
pytestmark = [
    pytest.mark.skipif(not PYTHON, reason="DLP_TEST_VLLM_PYTHON does not name a Python with vLLM"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
]


@pytest.fixture(scope="module")
def app(folder: Path) -> Iterator[Application]:
    engine = {"page_tokens": 32, "vllm": {"eager": True}}
    assert PYTHON
    with running(folder, queue=STREAMS, vllm_python=Path(PYTHON), engine=engine) as found:
        yield found


def mixed(weights: dict[str, float]) -> dict[str, Any]:
    return {"dlp": {"adapters": [{"name": name, "weight": weight} for name, weight in weights.items()]}}


def children(pid: int) -> set[int]:
    """Processes below one, at any depth."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    found: set[int] = set()
    while grown := {child for child, parent in parents.items() if parent in {pid, *found}} - found:
        found |= grown
    return found


MIXES = [{}, {"cron": 1.0}, {"dates": 0.5, "sql": 0.5}, {"cron": 0.3, "dates": 0.3, "sql": 0.4}, {"sql": -0.5}]


def test_answers_are_those_of_merged_weights_whoever_is_beside_them(app: Application) -> None:
    def answer(number: int) -> str:
        weights = MIXES[number % len(MIXES)]
        model = {"model": BASE} if not weights else mixed(weights)
        return text_of(ask(app, f"what of {number}?", max_tokens=TOKENS, **model))

    with ThreadPoolExecutor(STREAMS) as clients:
        said = list(clients.map(answer, range(2 * len(MIXES))))
    for number, text in enumerate(said):
        assert text == app.expected(app.chat_ids(f"what of {number}?"), MIXES[number % len(MIXES)], TOKENS)
    wait_until_idle()


def test_the_router_chooses_and_streams_say_what_whole_answers_say(app: Application) -> None:
    for name, task in TASKS.items():
        assert name in {part["adapter"] for part in ask(app, task.format(7))["dlp"]["spans"][0]["mix"]}
    asked = [question(number, TOKENS) for number in range(STREAMS)]
    with streams(app, asked) as alone:
        pass
    with streams(app, asked) as again:
        pass
    assert all(one.done and one.error is None for one in [*alone, *again])
    assert [one.text for one in alone] == [one.text for one in again]


def test_what_the_api_has_it_has_here(app: Application) -> None:
    schema = {"type": "object", "properties": {"n": {"const": 1}}, "required": ["n"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    assert json.loads(text_of(ask(app, "one", response_format=form, max_tokens=60))) == {"n": 1}
    several = ask(app, "two", n=2, seed=7, temperature=1.5, logprobs=True, top_logprobs=2)
    assert [len(choice["logprobs"]["content"]) for choice in several["choices"]] == [12, 12]
    assert several["choices"][0]["message"] != several["choices"][1]["message"]
    plain = text_of(ask(app, "three", model=BASE))
    assert text_of(ask(app, "three", model=BASE, presence_penalty=2, frequency_penalty=2)) != plain
    sentences = {"dlp": {"granularity": "sentence"}}
    spans = ask(app, f"{TASKS['cron'].format(3)}. {TASKS['sql'].format(4)}.", **sentences)["dlp"]["spans"]
    assert len(spans) > 1


def publish_another(app: Application, folder: Path, **lora: Any) -> str:
    """Publishes a bank whose adapter `cron` is another one. Returns its version."""
    shutil.copytree(app.folder / "bank", folder)
    shutil.rmtree(folder / "adapters/cron")
    write_adapter(folder / "adapters/cron", tiny_model(), 11, **lora)
    return publish(open_store(BANK), folder).version


def test_what_vllm_cannot_serve_is_refused_by_name(app: Application, tmp_path: Path) -> None:
    ask(app, "what?", model="cron")  # which is resident now, so that another bank's is loaded before its first request
    version = publish_another(app, tmp_path / "bank", target_modules=["embed_tokens"])
    refused = wait_for(lambda: health(app).get("refused"), "a refusal")
    assert refused["version"] == version
    assert "adapter 'cron' has LoRA on embeddings" in refused["reason"]
    assert "which engine vllm does not serve" in refused["reason"]
    assert serving(app) == "one"
    back_to_bank_one(app)
    several = f"{TASKS['cron'].format(3)}. {TASKS['sql'].format(4)}."
    reply = ask(app, several, presence_penalty=1, dlp={"granularity": "sentence"})
    assert (reply["status"], reply["error"]["param"]) == (400, "presence_penalty")


def test_a_bank_comes_and_goes(app: Application, tmp_path: Path) -> None:
    before = text_of(ask(app, "what?", model="cron"))
    version = publish_another(app, tmp_path / "bank")
    wait_for(lambda: serving(app) == version, "the other bank")
    assert text_of(ask(app, "what?", model="cron")) != before
    back_to_bank_one(app)
    assert text_of(ask(app, "what?", model="cron")) == before


@pytest.mark.parametrize("victim", ["worker", "replica"])
def test_who_dies_is_replaced_and_nothing_stays_behind(app: Application, victim: str) -> None:
    [(replica_id, pid)] = replicas("FusedBackbone").items()
    family = inside(replica_id, lambda engine: os.getpid()) and children(pid)
    assert len(family) >= 2  # the scheduler and the worker
    before = text_of(ask(app, "who?", **mixed({"sql": 1.0})))
    os.kill(max(family) if victim == "worker" else pid, signal.SIGKILL)
    wait_for(lambda: not any(lives(one) for one in (pid, *family)), "the end of the family", START_S)
    wait_for(lambda: [one for one in replicas("FusedBackbone") if one != replica_id], "another replica", START_S)
    wait_for(lambda: ask(app, "who?", **mixed({"sql": 1.0}))["status"] == 200, "an answer", START_S)
    assert text_of(ask(app, "who?", **mixed({"sql": 1.0}))) == before
