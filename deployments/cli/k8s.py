"""`dlp k8s`: what a cluster is asked for."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from deployments import terminal
from deployments.cli.base_model import fetched
from deployments.cli.options import Json, Yes
from dlp_core.errors import InvalidRequest
from dlp_core.store.opening import LOCATIONS, PLACES, open_store

if TYPE_CHECKING:
    from dlp_core.engine.sizing import DeviceFit, PodNeeds

app = typer.Typer(help="Sizes and manifests for Kubernetes.", no_args_is_help=True)

GIB = 2**30
RANK = 16
FEWEST_SLOTS = 8
"""routing.max_adapters: one mix may need as many."""


@app.command()
def size(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"The base model: {LOCATIONS}. No weights are read.")],
    *,
    gpu: Annotated[
        float, typer.Option(min=1, help="GiB of the device's memory, as nvidia-smi says; a 24 GB card has 22 to 24.")
    ],
    dtype: Annotated[str, typer.Option(help="What the model is loaded in: bfloat16, float16 or float32.")] = "bfloat16",
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Size adapters of this rank on every linear layer.", show_default=str(RANK)),
    ] = None,
    adapters_mb: Annotated[float | None, typer.Option(min=0.001, help="Or: MB of the largest adapter.")] = None,
    bank: Annotated[
        str | None,
        typer.Option(
            "--bank", envvar="DLP_BANK", metavar="URI", help=f"Or: the largest of a published bank; {PLACES}."
        ),
    ] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="engine.slots; default: what a third of the room left over takes, to 64.")
    ] = None,
    context: Annotated[int, typer.Option(min=1, help="Tokens of prompt and answer of one request.")] = 2048,
    requests: Annotated[int, typer.Option(min=1, help="Warn if fewer run at once at that context.")] = 8,
    memory_fraction: Annotated[float, typer.Option(help="engine.memory_fraction.")] = 0.9,
    batch_tokens: Annotated[int, typer.Option(min=1, help="engine.batch_tokens.")] = 2048,
    max_requests: Annotated[int, typer.Option(min=1, help="engine.max_requests.")] = 256,
    host_gib: Annotated[float, typer.Option(min=0.001, help="engine.host_bytes, in GiB.")] = 16,
    disk_gib: Annotated[float, typer.Option(min=0.001, help="cache.max_bytes, in GiB.")] = 20,
    pod_gib: Annotated[
        float | None, typer.Option(min=0.001, help="Memory of the pod in GiB, to be warned if it is too little.")
    ] = None,
    json: Json = False,
) -> None:
    """Say what of a model, its adapters and its cache fits on a GPU, and what the pod around it needs. Computed, not
    measured. Exit 1 if the model does not fit."""
    from dlp_core.engine.config import EngineConfig
    from dlp_core.engine.model_size import model_size
    from dlp_core.engine.sizing import adapter_bytes, fit_device, pod_needs

    if rank is not None and adapters_mb is not None:
        raise InvalidRequest("--rank and --adapters-mb both give the size of an adapter; leave one out")
    config = EngineConfig(
        memory_fraction=memory_fraction, slot_bytes=1, batch_tokens=batch_tokens, max_requests=max_requests
    )
    folder = fetched(model, weights=False)
    sizes = model_size(folder, dtype)
    if adapters_mb is not None:
        adapter, source = int(adapters_mb * 1e6), "--adapters-mb"
    elif bank is not None and rank is None:
        adapter, source = _largest(bank)
    else:
        from dlp_core.fusion.layers import read_shapes

        rank = rank or RANK
        adapter = adapter_bytes(read_shapes(folder), rank, sizes.config.vocab_size, dtype)
        source = f"rank {rank} on every linear layer"
    fit = fit_device(sizes, config, dtype=dtype, total=int(gpu * GIB), adapter=adapter, slots=slots, context=context)
    pod = pod_needs(sizes, adapter=adapter, host_bytes=int(host_gib * GIB), disk_cache=int(disk_gib * GIB))
    warnings = _warnings(fit, pod, quantised=sizes.quantised, requests=requests, pod_gib=pod_gib)
    if json:
        device = {**asdict(fit), "cache_bytes": fit.cache_bytes, "fits": fit.missing is None}
        terminal.print_json(
            {
                "model": model,
                "dtype": dtype,
                "adapter": source,
                "device": device,
                "pod": asdict(pod),
                "warnings": warnings,
            }
        )
    else:
        terminal.out.print(_table(f"{escape(model)} in {dtype} on {gpu:g} GiB", fit, pod, source))
        for warning in warnings:
            terminal.warn(warning)
    if fit.missing is not None:
        raise typer.Exit(1)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where it goes.")] = Path("values.yaml"),
    *,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Write a file of values to edit, and beside it the JSON schema that editors read."""
    import json as encoder

    from deployments.kubernetes.schema import json_schema
    from deployments.kubernetes.starter import SCHEMA_FILE, starter

    schema = path.with_name(SCHEMA_FILE)
    for each in (path, schema):
        if each.exists() and not yes:
            raise InvalidRequest(f"{each} exists; --yes replaces it")
    text = encoder.dumps(json_schema(), indent=1)
    path.write_text(starter(), encoding="utf-8")
    schema.write_text(text + "\n", encoding="utf-8")
    if json:
        terminal.print_json({"file": str(path), "schema": str(schema)})
        return
    terminal.say(f"Wrote {escape(str(path))} and {escape(str(schema))}. Set bank and model, then:")
    terminal.say(f"  dlp k8s render --values {escape(str(path))}")


@app.command()
def render(
    values: Annotated[
        Path, typer.Option("--values", metavar="FILE", help="The file of values, as `dlp k8s init` writes one.")
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="A folder for `kubectl apply -k`.", show_default="print the objects"),
    ] = None,
    json: Json = False,
) -> None:
    """Make the objects of an installation from one file of values. Needs kubectl, but no cluster."""
    from deployments.kubernetes.folder import to_yaml, write_folder
    from deployments.kubernetes.reading import read_values
    from deployments.kubernetes.render import render as objects_of

    objects = objects_of(read_values(values))
    if out is not None:
        write_folder(out, objects)
        names = [f"{item['kind']}/{item['metadata']['name']}" for item in objects]
        if json:
            terminal.print_json({"folder": str(out), "objects": names})
        else:
            terminal.say(f"Wrote {len(names)} objects to {escape(str(out))}: kubectl apply -k {escape(str(out))}")
    elif json:
        terminal.print_json({"apiVersion": "v1", "kind": "List", "items": objects})
    else:
        sys.stdout.write(to_yaml(objects))


def _largest(bank: str) -> tuple[int, str]:
    """The bytes of the largest adapter of a bank, as engines count them, and its name."""
    from dlp_core.bank.reading import load_manifest

    found = max(load_manifest(open_store(bank)).adapters, key=lambda adapter: adapter.size)
    return found.size, f"{found.name}, the largest of {bank}"


def _warnings(fit: DeviceFit, pod: PodNeeds, *, quantised: bool, requests: int, pod_gib: float | None) -> list[str]:
    said = []
    if fit.missing is not None:
        said.append(f"the model does not fit: {fit.missing}")
    elif fit.requests < requests:
        said.append(
            f"{fit.requests} requests of {fit.context} tokens run at once, fewer than {requests}; lower --slots, or "
            "take a larger device or a smaller model"
        )
    if fit.slots < FEWEST_SLOTS:
        said.append(f"{fit.slots} slots are fewer than the {FEWEST_SLOTS} adapters that a mix may have")
    if pod.host_adapters < 1:
        said.append("host memory does not hold one adapter; raise --host-gib")
    if pod_gib is not None and pod.pinned > pod_gib * GIB:
        said.append(f"{_gib(pod.pinned)} of pinned memory are more than the pod's {pod_gib:g} GiB; lower --host-gib")
    elif pod_gib is not None and pod.memory > pod_gib * GIB:
        said.append(f"the pod needs {_gib(pod.memory)} of memory and has {pod_gib:g}; lower --host-gib")
    if quantised:
        said.append("the model is quantised: its weights are counted as they are stored, and may take more once loaded")
    return said


def _table(title: str, fit: DeviceFit, pod: PodNeeds, source: str) -> Table:
    table = Table("what", "size", "from", title=title, title_justify="left")
    rows = [
        ("weights", _gib(fit.weights), "the headers of its files"),
        ("workspace", _gib(fit.workspace), "an estimate: an engine measures it when it starts"),
        ("left alone", _gib(fit.left_alone), "memory_fraction"),
        ("adapter slots", f"{_gib(fit.slot_bytes)}", f"{fit.slots} of {fit.adapter / 1e6:.1f} MB: {source}"),
        ("cache", _gib(fit.cache_bytes), f"{fit.cache_tokens:,} tokens of {fit.bytes_per_token:,} bytes"),
        ("requests at once", str(fit.requests), f"of {fit.context:,} tokens each"),
        ("pod: memory", _gib(pod.memory), f"{_gib(pod.pinned)} of it pinned, {_gib(pod.shared)} /dev/shm"),
        ("pod: ready adapters", str(pod.host_adapters), "in pinned memory, which comes in powers of two"),
        (
            "pod: ephemeral storage",
            _gib(pod.ephemeral_storage),
            f"{_gib(pod.disk_cache)} disk cache, {_gib(pod.model)} model",
        ),
    ]
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
