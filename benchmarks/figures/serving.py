"""Figures of serving: cold adapters, HTTP, startup, concurrent streams, and streams while adapters load."""

from __future__ import annotations

from benchmarks.figures.markdown import Lines, table
from benchmarks.figures.sources import Result, Results

HTTP = {"engine": "the engine, called directly", "serve": "Serve's own proxy", "throughput": "throughput mode"}
HTTP_RESULTS = ("http_path", "http_path_one_thread")
SMALL, LARGE = 0.94, 39.13
"""Sizes of the two adapters of the cold starts, in megabytes."""
STARTS = {
    "process": "whole process",
    "router": "running process",
    "engine": "engine without Ray",
    "serve": "`dlp serve`",
}


def cold_start(results: Results) -> Lines:
    """Time to the first token by the location of its adapter, and the time that a cold one adds."""
    cells: dict[tuple[str, float], dict[str, Result]] = {}
    for row in results["cold_start"]["rows"]:
        cells.setdefault((row["link"], row["mb"]), {})[row["side"]] = row
    rows = []
    for (link, mb), sides in cells.items():
        cold = sides["cold"]
        first_tokens = [_ms(sides[side]["ttft_ms"]) for side in ("device", "host", "disk", "cold")]
        added = _ms(cold["added_ms"]), _ms(cold["ideal_ms"]), f"{cold['ratio']:.2f}"
        rows.append([f"{link}; {mb:.2g} MB", *first_tokens, *added])
    columns = ["first token: in a slot", "in host memory", "on disk", "cold", "added", "ideal", "added over ideal"]
    return table(["link; adapter", *columns], rows)


def cold_added(results: Results) -> str:
    """Time that a cold adapter of 0.94 MB adds to the first token, over a link of 20 ms and 100 MB/s."""
    return _ms(_cold(results, "20 ms, 100 MB/s", SMALL)["added_ms"])


def cold_small(results: Results) -> str:
    """The same relative to the ideal: the first byte plus the bytes at the bandwidth of a plain GET."""
    return f"{_cold(results, '20 ms, 100 MB/s', SMALL)['ratio']:.2f}"


def cold_large(results: Results) -> str:
    """The same ratio for an adapter of 39 MB."""
    return f"{_cold(results, '20 ms, 100 MB/s', LARGE)['ratio']:.2f}"


def cold_loopback(results: Results) -> str:
    """The same ratio over loopback, for both adapters."""
    return " and ".join(f"{_cold(results, 'loopback', mb)['ratio']:.1f}" for mb in (SMALL, LARGE))


def cold_pack(results: Results) -> str:
    """Time from verified files of 39 MB on disk to host memory."""
    return _ms(_cold(results, "loopback", LARGE)["pack_ms"])


def cold_fetch(results: Results) -> str:
    """Time from S3 over loopback to verified files on disk, 39 MB."""
    return _ms(_cold(results, "loopback", LARGE)["fetch_ms"])


def http(results: Results) -> Lines:
    """Tokens per second over HTTP next to the engine's, with two threads for the model and with one."""
    rows = []
    for name in HTTP_RESULTS:
        for row in results[name]["rows"]:
            side = HTTP[row["side"]], results[name]["threads"], row["streams"]
            share = "" if row["side"] == "engine" else f"{row['ratio']:.2f}"
            rows.append([*side, f"{row['tokens_per_s']:.1f}", share, _ms(row["first_token_p50_ms"])])
    return table(["", "threads", "streams", "tokens/s", "share of the engine's", "first token, median"], rows)


def http_vllm(results: Results) -> Lines:
    """Tokens per second over HTTP next to the engine's, inside vLLM, one thread for the model."""
    rows = [
        [HTTP[row["side"]], f"{row['tokens_per_s']:.1f}", "" if row["side"] == "engine" else f"{row['ratio']:.2f}"]
        for row in results["http_path_vllm"]["rows"]
    ]
    return table(["inside vLLM, 16 streams, one thread", "tokens/s", "share of the engine's"], rows)


def http_two_threads(results: Results) -> str:
    """Tokens per second over HTTP in throughput mode relative to the engine, 16 streams, two threads for the model."""
    return f"{_http(results, 'http_path')['ratio']:.2f}"


def http_one_thread(results: Results) -> str:
    """The same with one thread for the model."""
    return f"{_http(results, 'http_path_one_thread')['ratio']:.2f}"


def http_token_ms(results: Results) -> str:
    """Time that HTTP in throughput mode adds to each token of a single stream, two threads for the model."""
    return f"{_http(results, 'http_path', 1)['added_ms'] / results['http_path']['tokens']:.0f}"


def http_throughput_mode(results: Results) -> Lines:
    """Requests per second and the latency added by HTTP, without throughput mode and with it."""
    rows = []
    for name, model in (("http_path_tiny", "tiny random model"), ("http_path_smollm2", "SmolLM2-135M bf16")):
        for streams, sides in results[name]["streams"].items():
            rates = [f"{sides[side]['requests_per_s']:.3g}" for side in HTTP]
            added = [_ms(sides[side]["added_p50_ms"]) for side in ("serve", "throughput")]
            rows.append([f"{model}, {streams}", *rates, *added])
    columns = ["engine, requests/s", "without", "with", "added without", "added with"]
    return table(["model, streams", *columns], rows)


def start(results: Results) -> Lines:
    """Startup time, phase by phase."""
    rows = [
        [f"{STARTS[row['kind']]}: {'**total**' if row['side'] == 'all' else row['side']}", _ms(row["ms"])]
        for row in results["startup"]["rows"]
    ]
    return table(["phase", "median"], rows)


def streams(results: Results) -> Lines:
    """The same prompts one at a time and all at once."""
    result = results["concurrent_streams"]
    rows = [
        [name, f"{result[side]['tokens_per_s']:.1f}", f"{result[side]['first_token_s']:.2f} s"]
        for name, side in (("one at a time", "alone"), (f"{result['streams']} streams", "together"))
    ]
    return table(["", "tokens/s", "first token, median"], rows)


def streams_same(results: Results) -> str:
    """Number of prompts with the same text and mix both ways."""
    result = results["concurrent_streams"]
    return f"{result['streams'] - len(result['different'])} of {result['streams']}"


def streams_mixes(results: Results) -> str:
    """Number of different mixes among those prompts."""
    return str(results["concurrent_streams"]["mixes"])


def loads(results: Results) -> Lines:
    """Time between tokens while nothing loads, and while adapters load."""
    return _loads(results["load_overlap"])


def loads_vllm(results: Results) -> Lines:
    """The same inside vLLM."""
    return _loads(results["load_overlap_vllm"])


def loads_vllm_ratio(results: Results) -> str:
    """The 99th percentile while adapters load relative to the quiet one, inside vLLM."""
    return f"{results['load_overlap_vllm']['p99_ratio']:.2f}"


def console_pages(results: Results) -> str:
    """From a navigation to the whole page of a console, over its pages and two widths."""
    ready = [row["ready_ms"] for row in results["console"]["rows"]]
    return f"{min(ready) / 1000:.1f} to {max(ready) / 1000:.1f} s"


def console_weight(results: Results) -> str:
    """What such a page takes."""
    rows = results["console"]["rows"]
    requests, sizes = [row["resources"] for row in rows], [row["bytes"] for row in rows]
    return f"{min(requests)} to {max(requests)}, {min(sizes) / 1000:.0f} to {max(sizes) / 1000:.0f} kB"


def _loads(result: Result) -> Lines:
    rows = [
        [name, _ms(result[side]["p50_ms"]), _ms(result[side]["p99_ms"])]
        for name, side in (("nothing loads", "quiet"), (f"{result['loads_per_s']:.1f} loads a second", "loading"))
    ]
    return table([f"time between tokens, {result['streams']} streams", "median", "99th percentile"], rows)


def _cold(results: Results, link: str, mb: float) -> Result:
    return next(
        row for row in results["cold_start"]["rows"] if (row["link"], row["mb"], row["side"]) == (link, mb, "cold")
    )


def _http(results: Results, name: str, streams: int = 16) -> Result:
    rows = results[name]["rows"]
    return next(row for row in rows if (row["side"], row["streams"]) == ("throughput", streams))


def _ms(value: float) -> str:
    """Milliseconds with at least two digits: 6.1 ms, 43 ms, 1,100 ms."""
    return f"{value:.1f} ms" if abs(value) < 10 else f"{value:,.0f} ms"
