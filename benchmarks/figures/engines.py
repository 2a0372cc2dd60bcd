"""Figures of whole engines: tokens per second next to vLLM and llama.cpp, and open-loop load."""

from __future__ import annotations

from typing import Any

from benchmarks.figures.markdown import Lines, span, table
from benchmarks.figures.sources import Result, Results

COUNTS = (1, 4, 16)
ENGINES = {
    ("ours", "plain"): "dlp-serve, plain",
    ("ours", "k=1"): "dlp-serve, one adapter per request",
    ("ours", "k=2"): "dlp-serve, a mix of 2 per request",
    ("ours", "k=3"): "dlp-serve, a mix of 3 per request",
    ("vllm", "plain"): "vLLM for CPUs, plain",
    ("vllm", "k=1"): "vLLM for CPUs, one adapter per request",
    ("llama.cpp", "plain"): "llama.cpp, plain",
    ("llama.cpp", "k=2"): "llama.cpp, a mix of 2 per request",
}
INSIDE = {
    ("ours in vllm", "plain"): "dlp-serve inside vLLM, plain",
    ("ours in vllm", "k=1"): "dlp-serve inside vLLM, one adapter per request",
    ("ours in vllm", "k=2"): "dlp-serve inside vLLM, a mix of 2 per request",
    ("ours in vllm", "k=3"): "dlp-serve inside vLLM, a mix of 3 per request",
    ("vllm", "plain"): "vLLM for CPUs, plain",
    ("vllm", "k=1"): "vLLM for CPUs, its own LoRA, one adapter per request",
    ("ours", "k=2"): "dlp-serve over transformers, a mix of 2 per request",
}
RESIDENT = {
    "8": "mixes of 2 of 8 adapters on q, v at rank 8",
    "beside 100": "the same, 100 adapters resident",
    "all linear": "mixes of 2 of 8 on all linear layers at rank 16",
}
PICKS = {
    "greedy": "the largest score",
    "temperature": "temperature",
    "top_p": "temperature, top_p 0.95",
    "top_k": "temperature, top_k 50",
    "penalties": "temperature, top_p 0.95, presence and repetition",
}
TRAFFIC = {
    "plain": "plain",
    "one": "one adapter",
    "k=3": "mixes of 3",
    "k=3 of 100": "mixes of 3 of 100 in 32 slots",
}


def throughput(results: Results) -> Lines:
    """Tokens per second of every engine, with 1, 4 and 16 requests together."""
    rates = _rates(results)
    rows = [[text, *(f"{rates[(*side, count)]:.3g}" for count in COUNTS)] for side, text in ENGINES.items()]
    return table(["tokens/s", "1 request", "4", "16"], rows)


def throughput_vllm(results: Results) -> Lines:
    """Tokens per second and CPU time a token inside vLLM and beside it, with 1, 4 and 16 requests together."""
    cells = {(row["engine"], row["side"], row["sequences"]): row for row in results["throughput_vllm"]["rows"]}
    rows = [
        [
            text,
            *(f"{cells[*side, count]['tokens_per_s']:.3g}" for count in COUNTS),
            *(f"{cells[*side, count]['cpu_ms_per_token']:.0f}" for count in COUNTS),
        ]
        for side, text in INSIDE.items()
    ]
    return table(["", "tokens/s: 1 request", "4", "16", "CPU ms a token: 1 request", "4", "16"], rows)


def inside_targets(results: Results) -> Lines:
    """The targets of the engine inside vLLM and what was measured. Misses are bold."""
    rows = []
    for target in results["throughput_vllm"]["targets"]:
        if "inside vLLM" in target["what"]:
            ratio = f"{target['ratio']:.2f}" if target["met"] else f"**{target['ratio']:.2f}**"
            rows.append([target["what"], ratio, f"at least {target['bound']:.2f}"])
    return table(["ratio", "measured", "target"], rows)


def inside_vllm(results: Results) -> Lines:
    """CPU time a token inside vLLM relative to vLLM's plain engine: 100 adapters resident, all linear layers."""
    cells = {(row["side"], row["sequences"]): row for row in results["inside_vllm"]["rows"]}
    rows = [[text, *(f"{cells[side, count]['over_plain']:.2f}" for count in COUNTS)] for side, text in RESIDENT.items()]
    return table(["CPU time a token, over vLLM's plain", "1 request", "4", "16"], rows)


def inside_vllm_resident(results: Results) -> str:
    """CPU time a token with 100 adapters resident relative to 8, 1 to 16 requests."""
    return span((target["ratio"] for target in results["inside_vllm"]["targets"]), ".2f")


def attention(results: Results) -> Lines:
    """A decode step of transformers and with our attention, by sequences and tokens of context."""
    cells: dict[tuple[int, int], dict[str, Result]] = {}
    for row in results["attention"]["rows"]:
        cells.setdefault((row["context"], row["sequences"]), {})[row["side"]] = row
    rows = [
        [f"{context:,}", count, *(f"{sides[side]['ms']:,.0f} ms" for side in ("transformers", "ours")),
         f"{1 / sides['ours']['ratio']:.2f}"]
        for (context, count), sides in cells.items()
    ]  # fmt: skip
    return table(["tokens in the cache of each", "sequences", "transformers", "ours", "gain"], rows)


def attention_gain(results: Results) -> str:
    """The gain at 16 sequences of 128 tokens."""
    return f"{1 / results['attention']['targets'][0]['ratio']:.1f}"


def sampling(results: Results) -> Lines:
    """Time between tokens of 16 requests by how their tokens are picked, relative to greedy."""
    rows = [[PICKS[row["side"]], f"{row['ms']:.0f} ms", f"{row['ratio']:.3f}"] for row in results["sampling"]["rows"]]
    return table(["tokens are picked by", "time between tokens", "over greedy"], rows)


def kernels(results: Results) -> Lines:
    """Registers of a thread and shared memory of a block, by kernel and capability; and what spills."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in results["kernels"]["rows"]:
        if not any(word in row["variant"] for word in ("window", "ids")) and row["variant"]:
            found.setdefault((row["kernel"], row["variant"]), {})[row["capability"]] = row
    capabilities = sorted({row["capability"] for row in results["kernels"]["rows"]}, key=float)
    rows = [
        [f"`{kernel}`, {variant}", *(_taken(cells[capability]) for capability in capabilities)]
        for (kernel, variant), cells in found.items()
    ]
    return table(["kernel", *(f"capability {capability}" for capability in capabilities)], rows)


def _taken(row: Result) -> str:
    spilled = f", {row['spilled_bytes']} bytes spilled" if row["spilled_bytes"] else ""
    return f"{row['registers']}, {row['shared_bytes'] / 1024:.0f} KB{spilled}"


def kernel_bytes(results: Results) -> Lines:
    """Launches of a layer, and bytes that a step adds to the plain model's weights."""
    rows: dict[str, list[str]] = {}
    for row in results["kernels"]["layer"]:
        cells = rows.setdefault(row["bank"], [row["bank"], str(row["launches"]), str(row["launches_merged"])])
        cells.append(f"{row['added_mb']:.1f} MB, {row['over_plain']:.1%}")
    counts = dict.fromkeys(row["sequences"] for row in results["kernels"]["layer"])
    heads = ["adapters", "launches", "inside vLLM", *(f"{count} sequence{'s' * (count > 1)}" for count in counts)]
    return table(heads, list(rows.values()))


def vllm_starts(results: Results) -> Lines:
    """Seconds from a new process, by whether vLLM has compiled the model before."""
    names = {"first": "the first, which compiles", "next": "the next", "eager": "with `eager: true`"}
    rows = [
        [names[row["start"]], f"{row['started']:.0f} s", f"{row['first token']:.0f} s"]
        for row in results["vllm_start"]["rows"]
    ]
    return table(["start", "the engine has started", "first token"], rows)


def vllm_lora(results: Results) -> str:
    """Our tokens per second under mixes of 2 relative to vLLM's under one adapter, 1 to 16 requests."""
    return span((target["ratio"] for target in results["throughput"]["targets"]), ".1f")


def vllm_plain(results: Results) -> str:
    """The plain vLLM engine's tokens per second relative to ours, 1 to 16 requests."""
    return span(_ratios(results, ("vllm", "plain"), ("ours", "plain")), ".1f")


def llama_cpp_plain(results: Results) -> str:
    """The plain llama.cpp engine's tokens per second relative to ours, one request."""
    return f"{_ratios(results, ('llama.cpp', 'plain'), ('ours', 'plain'))[0]:.1f}"


def llama_cpp_mixes(results: Results) -> str:
    """llama.cpp's tokens per second relative to ours, both under a mix of 2, one request."""
    return f"{_ratios(results, ('llama.cpp', 'k=2'), ('ours', 'k=2'))[0]:.1f}"


def over_llama_cpp_mixes(results: Results) -> str:
    """Our tokens per second relative to llama.cpp's, 16 requests under mixes of 2."""
    return f"{_ratios(results, ('ours', 'k=2'), ('llama.cpp', 'k=2'))[-1]:.1f}"


def arrivals(results: Results) -> Lines:
    """Open-loop load: the time between tokens, and the share of requests that met the objective."""
    rows = []
    for row in results["engine"]["rows"]:
        name = "closed loop, 16 clients" if row["process"] == "closed" else f"{row['process']}, load {row['load']}"
        latency = f"{row['itl_p50']:.0f} ms", f"{row['ratio']:.2f}"
        goodput = f"{row['met']:.0%}", f"{row['tokens_per_s']:.0f}"
        rows.append([f"{name}: {TRAFFIC[row['side']]}", row["requests"], *latency, *goodput])
    columns = ["requests", "time between tokens, median", "over plain", "met the objective", "tokens/s"]
    return table(["load: adapters", *columns], rows)


def arrivals_requests(results: Results) -> str:
    """Range of the number of requests a side answered in one cell of the arrivals."""
    return span((row["requests"] for row in results["engine"]["rows"]), "d")


def _rates(results: Results) -> dict[tuple[str, str, int], float]:
    rows = results["throughput"]["rows"]
    return {(row["engine"], row["side"], row["sequences"]): row["tokens_per_s"] for row in rows}


def _ratios(results: Results, side: tuple[str, str], base: tuple[str, str]) -> list[float]:
    """Ratios of one side's tokens per second to another's, at 1, 4 and 16 requests."""
    rates = _rates(results)
    return [rates[(*side, count)] / rates[(*base, count)] for count in COUNTS]
