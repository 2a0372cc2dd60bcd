"""Cost of a cold adapter to a request, compared with downloading its bytes from the same S3 server.

    .venv/bin/python -m benchmarks.cold_start MODEL_DIR [--quick] [--out FILE]

Random adapters of two sizes are published to a bank in SeaweedFS on this machine; an otherwise idle engine requests
them. Time to the first token of a request, by the location of its adapter:

    cold      only in S3
    disk      in the disk cache (and so in the kernel's page cache)
    host      in host memory
    device    in a slot

The server is reached over loopback, and over a link with the latency and bandwidth of a store in the same region
(benchmarks/measure/link.py). Each adapter is cold once. Alternately before and after its cold start, boto3 reads the
same object with a plain GET:

    ideal = first byte + bytes / bandwidth            bandwidth of the bytes after the first
    ratio = (cold - device) / ideal                   per adapter; the median is reported

`fetch_ms` is the part of a cold start from S3 to verified files on disk, `pack_ms` the part from there to host memory.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from urllib.parse import urlsplit

import typer

from benchmarks.measure.harness import median_ratio, model_folder, report, run, spread
from benchmarks.measure.link import Link, Shape
from benchmarks.measure.peft_folder import write_adapter
from benchmarks.measure.synthetic import TARGETS, load_model, random_adapter
from benchmarks.measure.targets import Target, target_rows
from dlp_core.adapter.contents import WEIGHTS_FILE
from dlp_core.bank.disk_cache import DiskCache
from dlp_core.bank.manifest import AdapterEntry, BankManifest
from dlp_core.bank.publish import publish
from dlp_core.bank.source import BankSource
from dlp_core.engine.config import EngineConfig
from dlp_core.engine.engine import FusedEngine
from dlp_core.engine.request import Sampling
from dlp_core.fusion.layers import Fusion, install
from dlp_core.mix import Mix
from dlp_core.residency.movement import Residency
from dlp_core.store.disk import CHUNK_BYTES
from dlp_core.store.local_s3 import LocalS3
from dlp_core.store.opening import open_store
from dlp_core.store.s3 import make_client

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BUCKET = "dlp-bench"
PROMPT_TOKENS = 32
TIERS = {"cold": ("disk", "host", "device"), "disk": ("host", "device"), "host": ("device",), "device": ()}
"""Tiers that a request of each kind must load into; anything else is a bug in the benchmark."""


class Size(NamedTuple):
    """Target modules and rank of adapters, and how many of them are measured cold."""

    targets: str
    rank: int
    adapters: int

    def __str__(self) -> str:
        return f"{self.targets} r={self.rank}"

    @property
    def prefix(self) -> str:
        """Prefix of its bank in the bucket."""
        return f"r{self.rank}/"


SIZES = (Size("q,v", 8, 40), Size("all-linear", 64, 12))
LINKS = (None, Shape(latency=0.02, bandwidth=100e6))
"""Loopback, and a link like S3 in the same region: about 20 ms to the first byte, 100 MB/s per connection."""
QUICK = (Size("q,v", 8, 8), Size("all-linear", 64, 4))


class Get(NamedTuple):
    """One plain GET: seconds to the first byte, seconds from there to the last, and size in bytes."""

    first_byte: float
    rest: float
    size: int

    def ideal(self, size: int) -> float:
        """Ideal download time of `size` bytes in seconds."""
        return self.first_byte + size * self.rest / self.size


def plain_get(client: S3Client, key: str) -> Get:
    started = time.perf_counter()
    body = client.get_object(Bucket=BUCKET, Key=key)["Body"]
    size = len(body.read(1))
    first_byte = time.perf_counter() - started
    for chunk in body.iter_chunks(CHUNK_BYTES):
        size += len(chunk)
    return Get(first_byte, time.perf_counter() - started - first_byte, size)


@dataclass
class Loads:
    """Seconds of the loads since the last `take`, by tier."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, tier: str, seconds: float) -> None:
        self.seconds[tier] = seconds

    def take(self) -> dict[str, float]:
        seconds, self.seconds = self.seconds, {}
        return seconds


class Client:
    """Sends an engine one request at a time."""

    def __init__(self, engine: FusedEngine, loads: Loads) -> None:
        self._engine = engine
        self._loads = loads
        self._numbers = count()

    async def first_token(self, kind: str, entry: AdapterEntry) -> tuple[float, dict[str, float]]:
        """Seconds to the first token of a request whose adapter is at `kind`, and of the loads it caused, by tier."""
        number = next(self._numbers)
        # distinct prompts, so that no cached prefix is shared
        prompt = [3 + (number * PROMPT_TOKENS + position) % 30_000 for position in range(PROMPT_TOKENS)]
        mix = Mix.of({entry.qualified_name: 1.0})
        sampling = Sampling(max_tokens=2, ignore_eos=True)
        seconds = 0.0
        started = time.perf_counter()
        async for _ in self._engine.submit(prompt, mix, sampling, request_id=str(number)):
            seconds = seconds or time.perf_counter() - started
        loads = self._loads.take()
        if set(loads) != set(TIERS[kind]):
            raise RuntimeError(f"{entry.name} should have been {kind}, but the loads were {sorted(loads)}")
        return seconds, loads


async def measure_starts(
    client: Client, entries: Sequence[AdapterEntry], s3: S3Client, prefix: str
) -> dict[str, list[Any]]:
    """Measure every kind of start in turn. With one slot and host memory for two adapters, the adapter read from disk
    before an entry's cold start is in host memory after it, and the previous entry is only on disk."""
    samples: dict[str, list[Any]] = defaultdict(list)
    on_disk, on_host, *measured = entries
    for entry in (on_disk, on_host):
        await client.first_token("cold", entry)
    for number, entry in enumerate(measured):
        for side in ("get", "cold") if number % 2 else ("cold", "get"):
            if side == "get":
                samples["get"].append(plain_get(s3, prefix + entry.key(WEIGHTS_FILE)))
            else:
                seconds, loads = await client.first_token("cold", entry)
                samples["cold"].append(seconds)
                samples["loads"].append(loads)
        for kind, adapter in (("device", entry), ("host", on_host), ("disk", on_disk)):
            samples[kind].append((await client.first_token(kind, adapter))[0])
        on_host, on_disk = on_disk, entry
    return samples


async def measure(model: Any, fusion: Fusion, size: Size, manifest: BankManifest, cache: Path) -> dict[str, list[Any]]:
    loads = Loads()
    disk = DiskCache(cache, 2**33, on_fetch=lambda _, seconds: loads.add("disk", seconds))
    source = BankSource(open_store(f"s3://{BUCKET}/{size.prefix}"), disk)
    source.add(manifest)
    residency = Residency(
        source,
        fusion,
        slots=1,
        host_bytes=int(2.5 * host_bytes(fusion, size)),
        on_load=lambda _, tier, seconds: loads.add(tier, seconds),
    )
    engine = FusedEngine(model, fusion, residency, EngineConfig(slots=1, cache_tokens=2048))
    os.sync()  # or the disk cache's first syncs would wait for the uploads to the S3 server
    await engine.start()
    try:
        return await measure_starts(Client(engine, loads), manifest.adapters, make_client(), size.prefix)
    finally:
        await engine.stop()


def publish_bank(folder: Path, fusion: Fusion, size: Size) -> BankManifest:
    for number in range(size.adapters + 2):
        write_adapter(
            folder / "adapters" / f"a{number:03}",
            fusion.shapes,
            targets=TARGETS[size.targets],
            rank=size.rank,
            seed=number,
        )
    (folder / "bank.json").write_text(json.dumps({"base_model": "bench/model"}))
    return publish(open_store(f"s3://{BUCKET}/{size.prefix}"), folder)


def host_bytes(fusion: Fusion, size: Size) -> int:
    """Bytes of one adapter in host memory."""
    return fusion.pack(random_adapter("a", fusion.shapes, targets=TARGETS[size.targets], rank=size.rank, seed=0)).nbytes


def rows(about: dict[str, Any], size_bytes: int, samples: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """A row for each kind of start. `size_bytes` is the size of one adapter including its config."""
    gets: list[Get] = samples["get"]
    ideal = [get.ideal(size_bytes) for get in gets]
    added = [cold - device for cold, device in zip(samples["cold"], samples["device"], strict=True)]
    about = about | {"mb": round(size_bytes / 1e6, 2)}
    table: list[dict[str, Any]] = []
    for kind in TIERS:
        row = {**about, "side": kind, "ttft_ms": _ms(samples[kind]), "spread": round(spread(samples[kind]), 3)}
        if kind == "cold":
            fetch = [loads["disk"] for loads in samples["loads"]]
            pack = [loads["host"] - loads["disk"] for loads in samples["loads"]]
            row |= {"added_ms": _ms(added), "fetch_ms": _ms(fetch), "pack_ms": _ms(pack)}
            row |= {"ideal_ms": _ms(ideal), "ratio": round(median_ratio(added, ideal), 2)}
        table.append(row)
    table.append(
        {
            **about,
            "side": "plain GET",
            "first_byte_ms": _ms([get.first_byte for get in gets]),
            "mb_per_s": round(median(get.size / get.rest for get in gets) / 1e6),
            "spread": round(spread(ideal), 3),
            "ideal_ms": _ms(ideal),
        }
    )
    return table


def _ms(seconds: Sequence[float]) -> float:
    return round(1000 * median(seconds), 2)


def main(
    model: Annotated[Path, typer.Argument(help="Folder of a model.", callback=model_folder)],
    quick: Annotated[bool, typer.Option(help="Fewer adapters.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; standard output by default.")] = None,
) -> None:
    loaded = load_model(model)
    fusion = install(loaded)
    result = []
    with TemporaryDirectory(prefix="dlp-cold-") as temporary, LocalS3(Path(temporary, "s3")) as server:
        server.create_bucket(BUCKET)
        for size in QUICK if quick else SIZES:
            os.environ |= server.environment
            manifest = publish_bank(Path(temporary, size.prefix), fusion, size)
            for link in LINKS:
                with linked(server, link):
                    cache = Path(temporary, "cache", size.prefix, str(link))
                    samples = asyncio.run(measure(loaded, fusion, size, manifest, cache))
                about = {"link": str(link) if link else "loopback", "adapter": str(size)}
                result += rows(about, manifest.adapters[0].size, samples)
    targets = target_rows(
        [
            Target(f"cold start over ideal, {row['link']}, adapters of {row['mb']} MB", row["ratio"], 1.3)
            for row in result
            if row["side"] == "cold"
        ]
    )
    settings = {"model": model.name, "dtype": "bfloat16", "prompt_tokens": PROMPT_TOKENS}
    report("cold start", result, out=out, **settings, targets=targets)


@contextmanager
def linked(server: LocalS3, shape: Shape | None) -> Iterator[None]:
    """S3 clients created inside the block reach the server over a link of this shape."""
    if shape is None:
        yield
        return
    endpoint = urlsplit(server.environment["AWS_ENDPOINT_URL_S3"])
    assert endpoint.port is not None
    with Link(endpoint.port, shape) as link:
        os.environ["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{link.port}"
        yield
    os.environ |= server.environment


if __name__ == "__main__":
    run(main)
