"""Options shared by several `dlp` commands."""

from __future__ import annotations

from typing import Annotated

import typer

from dlp_core.store.opening import LOCATIONS, PLACES

ROWS = "Rows of prompts and answers: JSON lines, CSV or Parquet, in any shape of docs/your-bank.md"
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Bank = Annotated[str, typer.Option("--bank", envvar="DLP_BANK", metavar="URI", help=f"{PLACES}.")]
_MODEL = {"envvar": "DLP_BASE_MODEL", "metavar": "MODEL", "show_default": False}
BaseModel = Annotated[str, typer.Option("--base-model", help=f"The base model: {LOCATIONS}.", **_MODEL)]
SomeBaseModel = Annotated[str | None, typer.Option("--base-model", help=f"The base model: {LOCATIONS}.", **_MODEL)]
CheckedBaseModel = Annotated[
    str | None,
    typer.Option("--base-model", help=f"The base model, to check that every adapter fits it: {LOCATIONS}.", **_MODEL),
]
Url = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="A running server.", show_default="http://127.0.0.1:8000")
]
Key = Annotated[
    str | None,
    typer.Option("--key", envvar="DLP_API_KEY", help="API key, where the server wants one.", show_default=False),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do it without asking.")]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", help="cpu or cuda, for trainings also mps; default: cuda if available, cpu for router train."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint of an interrupted training.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="The same rows and seed give the same bytes.")]
StrictNames = Annotated[
    bool, typer.Option("--strict-names", help="Refuse an adapter that names another base model, instead of warning.")
]
