"""`dlp adapter`: train a LoRA adapter, check whether one can be served exactly, convert one from a pickle."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from deployments import terminal
from deployments.cli.base_model import fetched
from deployments.cli.interrupts import resumable_training
from deployments.cli.options import ROWS, BaseModel, CheckedBaseModel, Device, Json, Resume, Seed, StrictNames
from deployments.cli.verdicts import print_verdicts
from deployments.extras import require
from dlp_core.adapter.contents import WEIGHTS_FILE
from dlp_core.adapter.weights import Adapter
from dlp_core.errors import InvalidRequest
from dlp_core.store.local_copy import local_copy
from dlp_core.store.opening import PLACES

if TYPE_CHECKING:
    from dlp_core.train.answers import Answer
    from dlp_core.train.rows import Row

ANSWERED = 3
"""Held-back rows that the new adapter answers at the end."""

app = typer.Typer(help="Train, check and convert LoRA adapters.", no_args_is_help=True)


@app.command()
def train(
    *,
    base_model: BaseModel,
    data: Annotated[Path, typer.Option(help=f"{ROWS}.")],
    out: Annotated[Path, typer.Option(help="Folder to write the PEFT adapter to.")],
    task: Annotated[str | None, typer.Option(help="The task to train on, if the file has several.")] = None,
    joint: Annotated[bool, typer.Option("--joint", help="Train one adapter on all tasks of the file.")] = False,
    rank: Annotated[int, typer.Option(min=1)] = 8,
    alpha: Annotated[float, typer.Option(min=0.0)] = 16.0,
    targets: Annotated[str, typer.Option(help="Modules to adapt, comma separated.")] = "q_proj,v_proj",
    steps: Annotated[int, typer.Option(min=1)] = 300,
    lr: Annotated[float, typer.Option(min=0.0, help="Peak learning rate.")] = 2e-3,
    batch_rows: Annotated[int, typer.Option(min=1, help="Packed rows per step.")] = 4,
    row_tokens: Annotated[int, typer.Option(min=16, help="Tokens per packed row.")] = 192,
    validation_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Rows held back to choose the best weights.", show_default="a tenth, at most 64"),
    ] = None,
    validation_data: Annotated[
        Path | None, typer.Option(help="Rows to choose the best weights by; then none of --data are held back.")
    ] = None,
    validate_every: Annotated[
        int,
        typer.Option(min=1, help="Steps between validations and checkpoints; three without improvement end training."),
    ] = 50,
    activated: Annotated[
        bool,
        typer.Option(
            "--activated", help="Leave what is before the last user turn to the plain model, whose cache is shared."
        ),
    ] = False,
    prefill_only: Annotated[
        bool,
        typer.Option(
            "--prefill-only", help="With --activated: the plain model writes the answer. An experiment, not served."
        ),
    ] = False,
    init_from: Annotated[
        Path | None,
        typer.Option(
            help="Begin with the weights of this adapter, of the same rank, alpha and targets.", show_default=False
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = None,
    resume: Resume = False,
    json: Json = False,
) -> None:
    """Train one LoRA adapter, usually on the rows of one task. The backbone stays frozen."""
    require("peft")
    if validation_data is not None and validation_rows is not None:
        raise InvalidRequest("--validation-data and --validation-rows exclude each other; leave one out")
    with resumable_training(out) as stop:
        from dlp_core.train.lora import TrainProgress, TrainSettings, train_adapter
        from dlp_core.train.rows import hold_back, read_rows

        settings = TrainSettings(
            rank=rank,
            alpha=alpha,
            targets=tuple(name.strip() for name in targets.split(",") if name.strip()),
            steps=steps,
            lr=lr,
            batch_rows=batch_rows,
            row_tokens=row_tokens,
            validation_rows=validation_rows,
            validate_every=validate_every,
            seed=seed,
            activated=activated,
            prefill_only=prefill_only,
        )
        computes_on = terminal.device(device, mps=True)
        model = fetched(base_model)
        rows = read_rows(data, task=task, joint=joint)
        if validation_data is None:
            validation: list[Row] = []
            _, held_back = hold_back(rows, validation_rows, Random(seed))
            terminal.err.print(f"{len(held_back):,} of {len(rows):,} rows are held back", highlight=False)
        else:
            validation = held_back = read_rows(validation_data, task=task, joint=joint)
        with terminal.progress(f"train {out.name}", total=steps) as bar:
            held_back_loss = ""

            def report(state: TrainProgress) -> None:
                nonlocal held_back_loss
                if state.validation_loss is not None:
                    held_back_loss = f", held back {state.validation_loss:.3f}"
                speed = f"{state.tokens_per_s:,.0f} tokens/s, {terminal.duration(state.seconds_left)} left"
                bar.update(state.step, title=f"train {out.name}: loss {state.loss:.3f}{held_back_loss}, {speed}")

            summary = train_adapter(
                model,
                rows,
                out,
                settings,
                validation=validation,
                init_from=init_from,
                device=computes_on,
                resume=resume,
                stop=stop,
                report=report,
            )
    # the engine would write the answers under the adapter
    answers = [] if prefill_only else _answers(model, out, held_back[:ANSWERED], computes_on)
    if json:
        terminal.print_json(
            {"adapter": out.name, **summary.as_dict(), "answers": [answer.as_dict() for answer in answers]}
        )
        return
    terminal.out.print(
        f"[bold]{out}[/]: {summary.parameters:,} parameters, {summary.bytes:,} bytes; held-back loss "
        f"{summary.validation_loss:.4f} at step {summary.best_step} of {summary.steps}, {summary.seconds:.0f} s"
    )
    if answers:
        table = Table("prompt", "expected", "answer", title="held-back rows, as they will be answered")
        for answer in answers:
            table.add_row(*map(escape, (answer.prompt, answer.expected, answer.answer)))
        terminal.out.print(table)


def _answers(base_model: Path, out: Path, rows: list[Row], device: str) -> list[Answer]:
    """What the server will answer to these rows. The adapter is already written: a failure is only a warning."""
    try:
        from dlp_core.train.answers import answer_rows

        with terminal.progress(f"answer {len(rows)} held-back rows"):
            return answer_rows(base_model, out, rows, device=device if device == "cuda" else "cpu")
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        terminal.warn(f"no held-back rows were answered: {reason}")
        return []


@app.command()
def check(
    location: Annotated[str, typer.Argument(help=f"A PEFT folder: {PLACES}.", metavar="DIR|URI")],
    base_model: CheckedBaseModel = None,
    base_model_name: Annotated[
        str | None, typer.Option(help="Name of the served base model; default: that of --base-model.")
    ] = None,
    strict_names: StrictNames = False,
    json: Json = False,
) -> None:
    """Describe an adapter and check that it can be served exactly; exit 2 with the reason if it cannot."""
    from dlp_core.adapter.base_names import BaseNames, folder_name
    from dlp_core.adapter.examination import Rules, judge, read_by

    if strict_names and base_model is None and base_model_name is None:
        raise InvalidRequest("--strict-names needs the served base model: --base-model MODEL or --base-model-name NAME")
    fits = None
    if base_model is not None:
        from dlp_core.fusion.layers import fits_model

        model = fetched(base_model, weights=False)
        fits = fits_model(model)
        base_model_name = base_model_name or folder_name(model)
    rules = Rules(strict_names=strict_names, hub_links=True)
    with terminal.progress(f"read {location}") as bar, local_copy(location, progress=bar.report) as folder:
        adapter = read_by(rules, folder, name=folder.name)
        names = None if base_model_name is None else BaseNames(base_model_name)
        adapter, verdict = judge(adapter, folder, base=names, check=fits, rules=rules)
        facts = _facts(adapter, folder)
    if base_model is not None:
        facts["fits"] = base_model
    said = {"notes": verdict.notes, "warnings": verdict.warnings, "left_out": verdict.left_out}
    if json:
        terminal.print_json({**facts, **said})
    else:
        _print_facts(facts)
        hint = "" if base_model else "; --base-model MODEL checks it against the layers of its base model"
        terminal.say(f"[green]can be served exactly[/]{hint}")
    print_verdicts([verdict], json=json)


@app.command()
def convert(
    folder: Annotated[
        Path, typer.Argument(help="A PEFT folder with adapter_model.bin and no adapter_model.safetensors.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Replace an existing adapter_model.safetensors.")] = False,
    json: Json = False,
) -> None:
    """Write adapter_model.safetensors from adapter_model.bin, in a process of its own that loads tensors alone."""
    from dlp_core.adapter.conversion import convert as convert_folder

    with terminal.progress(f"convert {folder}"):
        adapter = convert_folder(folder, replace=yes)
    written = folder / WEIGHTS_FILE
    if json:
        terminal.print_json({"adapter": adapter.name, "written": str(written), "bytes": written.stat().st_size})
        return
    terminal.say(
        f"[bold]{escape(str(written))}[/]: {adapter.parameters:,} parameters, {written.stat().st_size:,} bytes"
    )


def _print_facts(facts: dict[str, Any]) -> None:
    table = Table(show_header=False, box=None)
    for key, value in facts.items():
        if key == "served":  # printed below
            continue
        if isinstance(value, list):
            shown = ", ".join(map(str, value)) or "none"
        else:
            shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
        table.add_row(key.replace("_", " "), shown)
    terminal.out.print(table)


def _facts(adapter: Adapter, folder: Path) -> dict[str, Any]:
    modules = adapter.modules
    return {
        "adapter": adapter.name,
        "base_model": adapter.base_model,
        "ranks": sorted({weights.rank for weights in modules.values()}),
        "scalings": sorted({weights.scaling for weights in modules.values()}),
        "targets": sorted({path.rpartition(".")[2] for path in modules}),
        "modules": len(modules),
        "biases": len(adapter.biases),
        "base_weights": sorted(adapter.copies),
        "alora_invocation_tokens": list(adapter.invocation or ()),
        "parameters": adapter.parameters,
        "bytes": (folder / WEIGHTS_FILE).stat().st_size,
        "served": True,
    }
