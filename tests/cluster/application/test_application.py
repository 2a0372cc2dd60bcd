"""The whole application on a Ray cluster: serve_config.yaml, a real S3 server, a small router, a tiny backbone.

What it answers is compared with transformers on the same backbone after `W += sum_i w_i * s_i * B_i A_i`.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.measure.replicas import replicas_of
from dlp_core.bank.publish import publish
from dlp_core.bank.recipes import entry_of
from dlp_core.bank.revision import with_recipe
from dlp_core.store.opening import open_store
from examples.tiny.build import BASE, TASKS
from examples.tiny.model import tiny_tokenizer
from tests.cluster.application.conftest import QUEUE
from tests.support.application import (
    BANK,
    START_S,
    Application,
    ask,
    back_to_bank_one,
    get,
    serving,
    text_of,
)
from tests.support.replicas import ENDLESS, slow_steps
from tests.support.waiting import HANG_S, wait_for

METRICS = (
    "dlp_bank_info dlp_bank_requests_total dlp_bank_request_seconds dlp_canary_evidence "
    "dlp_route_seconds dlp_route_confidence dlp_mix_size dlp_adapter_hits_total dlp_fallback_total "
    "dlp_adapter_loads_total dlp_adapter_load_seconds dlp_adapters_resident dlp_time_to_first_token_seconds "
    "dlp_inter_token_seconds dlp_tokens_total dlp_requests_running dlp_requests_waiting dlp_bank_refused "
    "dlp_tokens_running dlp_tokens_waiting dlp_cache_use dlp_adapter_demand dlp_adapter_wait_seconds dlp_router_busy"
).split()


def test_it_waits_for_the_store_and_says_so(app: Application) -> None:
    assert app.first_health.status_code == 503
    error = app.first_health.json()["error"]
    assert error["code"] == "store_unavailable"
    assert BANK in error["message"]
    assert get(app, "/health").json() == {"status": "ok", "bank": "one"}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc to see a process's libraries in")
@pytest.mark.parametrize("deployment", ["Ingress", "Router", "FusedBackbone"])
def test_only_the_backbone_loads_torch(app: Application, deployment: str) -> None:
    [replica] = replicas_of(deployment)
    assert ("libtorch" in Path(f"/proc/{replica['pid']}/maps").read_text()) == (deployment == "FusedBackbone")


@pytest.mark.parametrize("name", sorted(TASKS))
def test_auto_routes_and_runs_exactly_that_adapter(app: Application, name: str) -> None:
    text = TASKS[name].format(7)
    reply = ask(app, text)
    [span] = reply["dlp"]["spans"]
    weights = {part["adapter"]: part["weight"] for part in span["mix"]}
    assert max(weights, key=weights.__getitem__) == name
    assert reply["headers"]["x-dlp-adapters"].startswith(f"{name}=")
    assert text_of(reply) == app.expected(app.chat_ids(text), weights, 12)
    assert (span["start"], span["end"]) == (0, reply["usage"]["total_tokens"])
    assert reply["usage"]["prompt_tokens"] == len(app.chat_ids(text))
    assert reply["usage"]["completion_tokens"] == 12
    assert reply["choices"][0]["finish_reason"] == "length"


def test_route_says_beforehand_what_serves(app: Application) -> None:
    text = TASKS["sql"].format(3)
    route = httpx.post(f"{app.url}/v1/route", json={"text": text}, timeout=HANG_S).json()
    reply = ask(app, text)
    assert route["mix"] == reply["dlp"]["spans"][0]["mix"]
    assert (route["reason"], route["bank"]) == ("routed", "one")
    assert set(route["probabilities"]) == set(TASKS)


@pytest.mark.parametrize(("model", "weights"), [("dates", {"dates": 1.0}), (f"{BASE}:cron", {"cron": 1.0}), (BASE, {})])
def test_a_named_model_is_that_model(app: Application, model: str, weights: dict[str, float]) -> None:
    assert text_of(ask(app, "hello", model=model)) == app.expected(app.chat_ids("hello"), weights, 12)


def test_explicit_weights_mix_exactly(app: Application) -> None:
    weights = {"sql": 0.75, "dates": -0.5, "cron": 0.25}
    adapters = [{"name": name, "weight": weight} for name, weight in weights.items()]
    reply = ask(app, "hello", dlp={"adapters": adapters})
    assert reply["headers"]["x-dlp-adapters"] == "sql=0.75,dates=-0.50,cron=0.25"
    expected = app.expected(app.chat_ids("hello"), weights, 12)
    assert text_of(reply) == expected
    assert expected not in {app.expected(app.chat_ids("hello"), {}, 12), text_of(ask(app, "hello", model="sql"))}


def test_a_recipe_answers_what_its_weights_answer(app: Application) -> None:
    weights = {"sql": 0.75, "dates": -0.5}
    bank = with_recipe(open_store(BANK), entry_of("blend", weights, {}))
    wait_for(lambda: serving(app) == bank.version, "the bank with a recipe")
    named = ask(app, "hello", model="blend")
    adapters = [{"name": name, "weight": weight} for name, weight in weights.items()]
    assert text_of(named) == text_of(ask(app, "hello", dlp={"adapters": adapters}))
    assert text_of(named) == app.expected(app.chat_ids("hello"), weights, 12)
    [span] = named["dlp"]["spans"]
    assert (span["recipes"], [part["adapter"] for part in span["mix"]]) == (["blend"], ["sql", "dates"])
    back_to_bank_one(app)


def test_requests_of_one_batch_do_not_touch_each_other(app: Application) -> None:
    models = ["sql", "dates", "cron", BASE, "sql", "dates"]
    alone = [text_of(ask(app, f"number {index}", model=model, max_tokens=40)) for index, model in enumerate(models)]
    with ThreadPoolExecutor(len(models)) as pool:
        replies = pool.map(lambda row: ask(app, f"number {row[0]}", model=row[1], max_tokens=40), enumerate(models))
        assert [text_of(reply) for reply in replies] == alone


def test_the_openai_client_streams_what_it_gets_whole(app: Application) -> None:
    question: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": TASKS["cron"].format(5)}]}
    whole = app.client.chat.completions.create(**question, max_tokens=60)
    chunks = list(app.client.chat.completions.create(**question, max_tokens=60, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert (chunks[-1].model_extra or {})["dlp"] == (whole.model_extra or {})["dlp"]
    assert len(chunks) > 5  # it came in pieces
    assert [model.id for model in app.client.models.list()] == ["auto", BASE, *sorted(TASKS)]


def test_a_bare_prompt_is_completed(app: Application) -> None:
    reply = app.client.completions.create(model="sql", prompt="the user", max_tokens=10)
    ids = list(tiny_tokenizer()("the user").input_ids)
    assert reply.choices[0].text == app.expected(ids, {"sql": 1.0}, 10)


def test_a_stop_string_ends_the_answer_before_it(app: Application) -> None:
    whole = text_of(ask(app, "hello", model="sql", max_tokens=40))
    stop = whole[10:13]
    reply = ask(app, "hello", model="sql", max_tokens=40, stop=[stop])
    assert text_of(reply) == whole[: whole.index(stop)]
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] < 40


def test_sentences_run_under_mixes_of_their_own(app: Application) -> None:
    first, second = TASKS["sql"].format(3).capitalize(), TASKS["dates"].format(4).capitalize()
    text = f"{first}. {second}."
    question = {"dlp": {"granularity": "sentence", "max_adapters": 1}, "max_tokens": 60}
    reply = ask(app, text, **question)
    spans = reply["dlp"]["spans"]
    assert [part["adapter"] for span in spans[:2] for part in span["mix"]] == ["sql", "dates"]
    assert [span["start"] for span in spans] == [0, *(span["end"] for span in spans[:-1])]
    assert spans[-1]["end"] == reply["usage"]["total_tokens"]
    border = tiny_tokenizer().decode(app.chat_ids(text)[: spans[0]["end"]])
    assert border.endswith(f"{first}. ")
    assert all(part["digest"].startswith("sha256:") for span in spans for part in span["mix"])
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(ask, app, text, **question), pool.submit(ask, app, text)]
        assert others[0].result()["dlp"]["spans"] == spans
        assert text_of(others[0].result()) == text_of(reply) != text_of(others[1].result())


def test_tasks_are_answered_as_if_each_were_asked_alone(app: Application) -> None:
    first, second = TASKS["sql"].format(3).capitalize(), TASKS["dates"].format(4).capitalize()
    dlp: dict[str, Any] = {"max_adapters": 1}
    stop = [text_of(ask(app, f"{first}.", dlp=dlp, max_tokens=20))[4:8]]  # the tiny model ends no answer itself
    answers = [ask(app, f"{question}.", dlp=dlp, max_tokens=20, stop=stop) for question in (first, second)]
    most = answers[0]["usage"]["completion_tokens"] + 20
    dlp["granularity"] = "task"
    reply = ask(app, f"1. {first}.\n2. {second}.", dlp=dlp, max_tokens=most, stop=stop)
    assert text_of(reply) == "\n\n".join(map(text_of, answers))
    read = reply["usage"]["prompt_tokens"]
    assert read == sum(answer["usage"]["prompt_tokens"] for answer in answers)
    spans = reply["dlp"]["spans"]
    assert [[part["adapter"] for part in span["mix"]] for span in spans] == 2 * [["sql"], ["dates"]]
    assert spans[1]["end"] == read
    assert spans[-1]["end"] == reply["usage"]["total_tokens"]


def test_several_choices_of_a_seed_can_be_had_again(app: Application) -> None:
    question: dict[str, Any] = {"model": "sql", "messages": [{"role": "user", "content": "hello"}], "temperature": 1.5}
    runs = [app.client.chat.completions.create(**question, n=3, seed=11, max_tokens=20) for _ in range(2)]
    texts = [[choice.message.content for choice in run.choices] for run in runs]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3
    one = app.client.chat.completions.create(**question, seed=12, max_tokens=20)
    assert one.choices[0].message.content == texts[0][1]
    chunks = list(app.client.chat.completions.create(**question, n=3, seed=11, max_tokens=20, stream=True))
    streamed = ["", "", ""]
    for chunk in chunks:
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts[0]


def test_log_probabilities_are_of_the_tokens_sent(app: Application) -> None:
    messages = [{"role": "user", "content": "count the users"}]  # the answer has no special tokens
    question: dict[str, Any] = {"model": "sql", "messages": messages, "max_tokens": 20}
    whole = app.client.chat.completions.create(**question, logprobs=True, top_logprobs=2).choices[0]
    assert whole.logprobs is not None
    found = whole.logprobs.content or []
    said = b"".join(bytes(one.bytes or ()) for one in found).decode(errors="ignore")
    assert said == str(whole.message.content).replace("\ufffd", "")  # a random model writes what is no text
    assert all(one.logprob == one.top_logprobs[0].logprob < 0 for one in found), "greedy picks the likeliest"
    stop = re.findall(r"[!-~]{3}", str(whole.message.content))[-1]
    cut = app.client.chat.completions.create(**question, logprobs=True, stop=[stop]).choices[0]
    assert cut.logprobs is not None
    said = b"".join(bytes(one.bytes or ()) for one in cut.logprobs.content or []).decode(errors="ignore")
    assert str(cut.message.content).replace("\ufffd", "").startswith(said)
    assert stop not in said


def test_sampling_differs_and_greedy_does_not(app: Application) -> None:
    hot = {text_of(ask(app, "hello", model="sql", temperature=1.5)) for _ in range(3)}
    assert len(hot) > 1
    assert len({text_of(ask(app, "hello", model="sql", temperature=1.5, top_k=1)) for _ in range(2)}) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("text", "changes", "param"),
    [("x" * 5000, {}, "messages"), ("x", {"max_tokens": 5000}, "max_tokens"), ("é" * 400_000, {}, "messages")],
    ids=["prompt", "max_tokens", "hopeless"],
)
def test_what_does_not_fit_the_context_is_refused(
    app: Application, text: str, changes: dict[str, Any], param: str, *, stream: bool
) -> None:
    reply = ask(app, text, model="sql", stream=stream, **changes)
    assert reply["status"] == 400
    assert (reply["error"]["code"], reply["error"]["param"]) == ("context_length_exceeded", param)


def test_the_request_id_comes_back(app: Application) -> None:
    answer = get(app, "/v1/models", {"x-request-id": "mine-1"})
    assert answer.headers.get_list("x-request-id") == ["mine-1"]
    assert len(get(app, "/v1/models").headers["x-request-id"]) > 8


@pytest.mark.parametrize("header", ["x-request-id", "traceparent", "serve_multiplexed_model_id", "x-session-id"])
def test_a_header_that_is_not_utf8_is_no_error(app: Application, header: str) -> None:
    answer = httpx.get(f"{app.url}/v1/models", headers={header.encode(): b"caf\xe9 \xff\xfe"})
    assert answer.status_code == 200


def test_a_full_application_says_429(app: Application) -> None:
    """QUEUE requests run, as many wait in the ingress; the next is refused at once."""

    async def flood() -> list[httpx.Response]:
        body = {"model": "sql", "prompt": "the user", "max_tokens": 150}
        async with httpx.AsyncClient(timeout=HANG_S) as http:
            calls = (http.post(f"{app.url}/v1/completions", json=body) for _ in range(4 * QUEUE))
            return await asyncio.gather(*calls)

    answers = asyncio.run(flood())
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    for answer in refused:
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["type"] == "rate_limit_error"
    served = {answer.json()["choices"][0]["text"] for answer in answers if answer.status_code == 200}
    assert len(served) == 1


def test_a_client_that_goes_away_frees_its_place(app: Application) -> None:
    """QUEUE endless streams fill the replica; once their clients are gone, there is room at once."""
    body = {"model": "sql", "prompt": "the user", "max_tokens": ENDLESS, "stream": True}
    with slow_steps(), httpx.Client(timeout=HANG_S) as http:
        streams = [http.stream("POST", f"{app.url}/v1/completions", json=body) for _ in range(QUEUE)]
        for stream in streams:
            next(stream.__enter__().iter_lines())
        for stream in streams:
            stream.__exit__(None, None, None)
        assert ask(app, "hello", model="sql")["status"] == 200


def test_a_new_bank_takes_over_and_rolls_back(app: Application) -> None:
    with other_bank(app, "two") as adapters:
        shutil.rmtree(adapters / "sql")
    assert ask(app, "hello", model="sql")["status"] == 404
    assert ask(app, "hello", model="dates")["dlp"]["bank"] == "two"
    assert "no router" in ask(app, "hello")["error"]["message"]
    back_to_bank_one(app)
    assert ask(app, "hello", model="sql")["dlp"]["bank"] == "one"


def test_resident_adapters_outlive_the_store(app: Application) -> None:
    before = text_of(ask(app, "hello", model="sql"))
    with other_bank(app, "three") as adapters:
        (adapters / "dates").rename(adapters / "late")
        config = json.loads((adapters / "late" / "adapter_config.json").read_text())
        (adapters / "late" / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 1}))
    app.server.stop()
    try:
        assert text_of(ask(app, "hello", model="sql")) == before
        refused = ask(app, "hello", model="late")
        assert (refused["status"], refused["error"]["code"]) == (503, "adapter_unavailable")
        assert "late" in refused["error"]["message"]
        assert get(app, "/health").status_code == 200
    finally:
        app.server.start()
    assert ask(app, "hello", model="late")["status"] == 200
    back_to_bank_one(app)


@contextmanager
def other_bank(app: Application, version: str) -> Iterator[Path]:
    """Publishes the first bank under `version`, without its router and with what the block does to its adapters."""
    folder = shutil.copytree(app.folder / "bank", app.folder / version, ignore=shutil.ignore_patterns("router"))
    yield folder / "adapters"
    publish(open_store(BANK), folder, version=version)
    wait_for(lambda: serving(app) == version, f"bank {version}")


def test_the_metrics_are_exported(app: Application) -> None:
    import ray

    port = ray.nodes()[0]["MetricsExportPort"]

    def missing() -> set[str]:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=HANG_S).text
        return {name for name in METRICS if f"\nray_{name}" not in text}

    assert ask(app, TASKS["sql"].format(2))["status"] == 200
    assert ask(app, "hello", dlp={"min_confidence": 1})["dlp"]["spans"][0]["mix"] == []
    wait_for(lambda: not missing(), f"export of {METRICS}")  # Ray exports every ten seconds


def test_a_replica_that_dies_is_replaced(app: Application) -> None:
    """A stream it was serving ends with an error event; later requests are served again."""
    import ray

    body = {"model": "cron", "prompt": "the user", "max_tokens": ENDLESS, "stream": True}
    with httpx.stream("POST", f"{app.url}/v1/completions", json=body, timeout=HANG_S) as stream:
        lines = stream.iter_lines()
        next(lines)
        [backbone] = [
            actor for actor in ray.util.list_named_actors(all_namespaces=True) if "FusedBackbone" in actor["name"]
        ]
        ray.kill(ray.get_actor(backbone["name"], namespace=backbone["namespace"]))
        *_, last = [line for line in lines if line]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_failed"
    wait_for(lambda: answers(app), "new replica", START_S)


def answers(app: Application) -> bool:
    try:
        return bool(ask(app, "hello", model="cron")["status"] == 200)
    except httpx.TimeoutException:
        return False
