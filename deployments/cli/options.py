"""Options shared by several `dlp` commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlp_core.store.opening import PLACES

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Bank = Annotated[str, typer.Option("--bank", envvar="DLP_BANK", metavar="URI", help=f"{PLACES}.")]
BASE_MODEL = typer.Option("--base-model", envvar="DLP_BASE_MODEL", help="Folder of the base model.", show_default=False)
BaseModel = Annotated[Path, BASE_MODEL]
Url = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="A running server.", show_default="http://127.0.0.1:8000")
]
Key = Annotated[
    str | None,
    typer.Option("--key", envvar="DLP_API_KEY", help="API key, where the server wants one.", show_default=False),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do it without asking.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu or cuda; default: cuda if available.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="The same rows and seed give the same bytes.")]
StrictNames = Annotated[
    bool, typer.Option("--strict-names", help="Refuse an adapter that names another base model, instead of warning.")
]
