"""`dlp model`: push a base model to a store and pull it to a node."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from deployments import terminal
from deployments.cli.base_model import fetched
from deployments.cli.options import Json
from dlp_core.errors import NotFound, StoreUnavailable
from dlp_core.store.opening import LOCATIONS, PLACES, open_store
from dlp_core.store.protocol import AdapterStore

if TYPE_CHECKING:
    from dlp_core.store.base_model import ModelManifest

app = typer.Typer(help="Move base models between folders and a store.", no_args_is_help=True)

Location = Annotated[
    str,
    typer.Argument(envvar="DLP_BASE_MODEL_URI", metavar="URI", help=f"{PLACES}; holds one model."),
]

RETRY_S = 2.0


@app.command()
def push(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=f"config.json, tokenizer files, *.safetensors: {LOCATIONS}.")
    ],
    uri: Location,
    json: Json = False,
) -> None:
    """Upload a model folder. A location holds one model for good; push another model to another location."""
    from dlp_core.store.base_model import push as push_model

    store = open_store(uri)
    folder = fetched(model)
    with terminal.progress(f"push {model}") as bar:
        manifest = push_model(store, folder, progress=bar.report)
    if json:
        terminal.print_json(_facts(store, manifest))
        return
    _say(manifest, f"in {store.uri}")


@app.command()
def pull(
    uri: Location,
    folder: Annotated[
        Path,
        typer.Argument(envvar="DLP_BASE_MODEL", help="Target folder; it appears once it is complete and verified."),
    ],
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for a store or model that does not exist yet.")
    ] = 0,
    json: Json = False,
) -> None:
    """Fetch a model into a folder, unless the folder has it already."""
    from dlp_core.store.base_model import pull as pull_model

    store = open_store(uri)
    deadline = time.monotonic() + wait
    with terminal.progress(f"pull {uri}") as bar:
        while True:
            try:
                manifest, fetched = pull_model(store, folder, progress=bar.report)
                break
            except (NotFound, StoreUnavailable):
                if time.monotonic() + RETRY_S > deadline:
                    raise
                time.sleep(RETRY_S)
    if json:
        terminal.print_json({**_facts(store, manifest), "folder": str(folder), "fetched": fetched})
        return
    _say(manifest, f"in {folder}" + ("" if fetched else ", unchanged"))


def _facts(store: AdapterStore, manifest: ModelManifest) -> dict[str, object]:
    return {
        "uri": store.uri,
        "name": manifest.name,
        "digest": manifest.digest,
        "files": len(manifest.files),
        "size": manifest.size,
    }


def _say(manifest: ModelManifest, where: str) -> None:
    terminal.say(
        f"[bold]{escape(manifest.name)}[/]: {len(manifest.files)} files, {manifest.size / 1e6:.1f} MB {escape(where)}"
    )
