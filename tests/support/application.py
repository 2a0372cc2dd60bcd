"""The whole application on a Ray cluster, for tests: serve_config.yaml, a real S3 server, small router and backbone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from deployments.http.access import TOKEN_VARIABLE
from deployments.local.app import LocalApp, load_config
from deployments.local.engine import set_engine
from dlp_core.adapter.weights import read_adapter
from dlp_core.bank.publish import publish, rollback
from dlp_core.ports import free_port
from dlp_core.store.local_s3 import LocalS3
from dlp_core.store.opening import open_store
from examples.tiny.build import BASE
from examples.tiny.model import tiny_model, tiny_tokenizer
from tests.support.paths import ROOT
from tests.support.waiting import HANG_S, wait_for

START_S = 900.0
"""After which an application that does not start hangs."""
PATIENCE = {
    "RAY_worker_niceness": "0",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": str(HANG_S),
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(HANG_S),
}
"""By Ray's own settings, whatever else runs on this machine comes first, and a proxy that is slow then is replaced."""
ADMIN_TOKEN = "admin-token-of-the-tests"
BANK = "s3://dlp/bank/"


@dataclass
class Application:
    url: str
    folder: Path
    server: LocalS3
    first_health: httpx.Response
    config: dict[str, Any]
    """What is deployed."""

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0)

    def expected(self, prompt_ids: list[int], weights: Mapping[str, float], tokens: int) -> str:
        """Greedy text of the backbone whose weights were changed by exactly this sum."""
        model = tiny_model()
        modules = dict(model.named_modules())
        with torch.no_grad():
            for name, weight in weights.items():
                for path, lora in read_adapter(self.folder / "bank" / "adapters" / name, name=name).modules.items():
                    modules[path].weight += weight * lora.scaling * (lora.b_OR.float() @ lora.a_RD.float())
            ids = model.generate(torch.tensor([prompt_ids]), max_new_tokens=tokens, do_sample=False)
        text = str(tiny_tokenizer().decode(ids[0, len(prompt_ids) :], skip_special_tokens=True))
        return text.rstrip("\ufffd")  # half a character at the end is not sent

    def chat_ids(self, text: str) -> list[int]:
        turns = [{"role": "user", "content": text}]
        return list(tiny_tokenizer().apply_chat_template(turns, add_generation_prompt=True, return_dict=False))


@contextmanager
def running(
    folder: Path,
    *,
    queue: int,
    store_is_late: bool = False,
    scaling: Mapping[str, Mapping[str, Any]] | None = None,
    local_app: type[LocalApp] = LocalApp,
    vllm_python: Path | None = None,
    **args: Any,
) -> Iterator[Application]:
    """The application with BANK published as version one. `queue` requests run at once in a backbone replica, as many
    wait; `args` are set in serve_config.yaml, and `scaling` in the autoscaling_config of the deployments it names. With
    `store_is_late` it starts while there is no store; with `vllm_python` the backbones run vLLM. `folder` has what
    `write_bank` puts there."""
    config = load_config(ROOT / "serve_config.yaml")
    settings = config["applications"][0]["args"]
    settings |= {"dtype": "float32", "threads": 1, "bank_poll_s": 0.5, "cache": {"path": str(folder / "cache")}} | args
    settings["engine"] |= {"max_requests": queue, "cache_tokens": 32768} | args.get("engine", {})
    if vllm_python is not None:
        set_engine(config, "vllm", vllm_python)
    settings["routing"] |= {"timeout_s": HANG_S} | args.get("routing", {})
    for deployment in config["applications"][0]["deployments"]:
        deployment["ray_actor_options"]["num_cpus"] = 0.1
        deployment |= {"health_check_period_s": 1, "health_check_timeout_s": HANG_S}  # what broke is soon seen
        deployment["autoscaling_config"] |= (scaling or {}).get(deployment["name"], {})
        if deployment["name"] == "FusedBackbone":
            deployment |= {"max_ongoing_requests": queue + 1, "max_queued_requests": queue}  # and a link
    server = LocalS3(folder / "s3", port=free_port())
    with pytest.MonkeyPatch.context() as environment, ExitStack() as started:
        started.callback(server.stop)
        environment.setenv("PYTHONPATH", str(ROOT))
        environment.setenv("OMP_NUM_THREADS", "1")
        for name, value in PATIENCE.items():
            environment.setenv(name, value)
        environment.setenv(TOKEN_VARIABLE, ADMIN_TOKEN)
        for name, value in server.start().items():
            environment.setenv(name, value)
        server.create_bucket("dlp")
        publish(open_store(BANK), folder / "bank", version="one")
        if store_is_late:
            server.stop()
        local = started.enter_context(local_app(config, bank=BANK, base_model=folder / BASE))
        first_health = wait_for(lambda: answer_of(f"{local.url}/health"), "answer", START_S)
        if store_is_late:
            server.start()
        wait_for(lambda: httpx.get(f"{local.url}/health", timeout=HANG_S).status_code == 200, "bank", START_S)
        yield Application(local.url, folder, server, first_health, local.config)


def answer_of(url: str) -> httpx.Response | None:
    """What the application itself says; None while Serve has no route to it."""
    try:
        answer = httpx.get(url, timeout=HANG_S)
    except httpx.TransportError:
        return None
    return answer if answer.headers["content-type"] == "application/json" else None


def get(app: Application, path: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
    return httpx.get(f"{app.url}{path}", headers=headers, timeout=HANG_S)


def ask(app: Application, text: str, *, key: str = "none", **changes: Any) -> dict[str, Any]:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], "max_tokens": 12} | changes
    answer = httpx.post(
        f"{app.url}/v1/chat/completions", json=body, timeout=HANG_S, headers={"authorization": f"Bearer {key}"}
    )
    return {"status": answer.status_code, "headers": answer.headers, **answer.json()}


def text_of(reply: dict[str, Any]) -> str:
    return str(reply["choices"][0]["message"]["content"])


def serving(app: Application) -> str:
    return str(health(app)["bank"])


def health(app: Application) -> dict[str, Any]:
    """What /health says to the operator."""
    found: dict[str, Any] = get(app, "/health", {"authorization": f"Bearer {ADMIN_TOKEN}"}).json()
    return found


def back_to_bank_one(app: Application) -> None:
    rollback(open_store(BANK), "one")
    wait_for(lambda: serving(app) == "one", "bank one")
