"""`dlp demo` and `dlp serve`: the application on this machine, until Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from deployments import terminal
from deployments.cli.base_model import fetched, served
from deployments.cli.options import Bank, BaseModel
from deployments.cli.verdicts import print_verdicts
from deployments.extras import require
from deployments.local.engine import set_engine
from dlp_core.engine.config import Kind

if TYPE_CHECKING:
    from dlp_core.adapter.examination import Verdict

Port = Annotated[int, typer.Option(min=1, max=65535, help="Port of the endpoint.")]
Config = Annotated[
    Path | None,
    typer.Option(help="Serve config file with the deployments' settings. Default: serve_config.yaml, else built in."),
]
EngineKind = Annotated[
    Kind | None, typer.Option("--engine", help="What runs the model. Default: engine.kind of the config file.")
]
VllmPython = Annotated[
    Path | None, typer.Option("--vllm-python", help="Python of an environment with vLLM, for engine vllm.")
]


def demo(
    *,
    port: Port = 8000,
    console_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the console.")] = 8001,
    config: Config = None,
    bank: Annotated[Path, typer.Option(help="Local folder of the bank to publish.")] = Path("examples/bank"),
    folder: Annotated[Path, typer.Option(help="Folder for everything the demo creates.")] = Path(".demo"),
    engine: EngineKind = None,
    vllm_python: VllmPython = None,
) -> None:
    """Publish the demo bank to a local S3 server, serve it with a console, answer some prompts, and stay up until
    Ctrl-C."""
    require("ray", "fastapi", "gguf", "openai")
    from deployments.local.demo import run

    with until_interrupted():
        run(
            port=port,
            console_port=console_port,
            config=config,
            bank=bank,
            folder=folder,
            engine=engine,
            vllm_python=vllm_python,
        )


def serve(
    bank: Bank,
    base_model: BaseModel,
    *,
    port: Port = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    config: Config = None,
    engine: EngineKind = None,
    vllm_python: VllmPython = None,
) -> None:
    """Serve a bank, published or a bank folder, on this machine until Ctrl-C."""
    require("ray", "fastapi")
    from deployments.local.app import LocalApp, find_config, load_config
    from dlp_core.bank.folder import is_folder
    from dlp_core.bank.publish import publish
    from dlp_core.bank.reading import load_manifest
    from dlp_core.bank.served_base import check_served
    from dlp_core.store.opening import open_store

    settings = load_config(find_config(config))
    set_engine(settings, engine, vllm_python)
    with until_interrupted(), ExitStack() as started:
        unpublished = is_folder(bank)
        store = started.enter_context(TemporaryDirectory(prefix="dlp-bank-")) if unpublished else bank
        if unpublished:
            args = settings["applications"][0].setdefault("args", {})
            args["feedback"] = {**(args.get("feedback") or {}), "keep": False}
        model = fetched(base_model)
        app = LocalApp(settings, bank=store, base_model=model, port=port, host=host)
        app.check()
        verdicts: list[Verdict] = []
        with terminal.step(f"read the bank in {bank}"):
            manifest = (
                publish(open_store(store), Path(bank), report=verdicts.append)
                if unpublished
                else load_manifest(open_store(store))
            )
        print_verdicts(verdicts, json=False)
        if unpublished:
            terminal.warn(
                f"{bank} is a folder that is not published: what is changed while it serves is not kept, "
                "and it takes no feedback"
            )
        with served(model) as base:
            remark = check_served(manifest.base_model, base)
        if remark:
            terminal.warn(remark)
        with terminal.step("start Ray and Ray Serve"):
            started.enter_context(app)
        with terminal.step("start the replicas") as step:
            app.wait_until_ready(step.say)
        terminal.out.print(f"Serving {bank} on {app.url} until Ctrl-C. In another terminal:", highlight=False)
        terminal.say(f"  dlp chat --url {app.url}\n  dlp top --url {app.url}")
        signal.pause()


@contextmanager
def until_interrupted() -> Iterator[None]:
    """End the block on Ctrl-C or SIGTERM. Further signals are ignored while everything is being stopped."""

    def stop(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        terminal.err.print("\nStopping …")
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt:
        terminal.err.print("Everything has stopped.")
