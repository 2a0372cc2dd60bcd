"""Figures of whole engines: tokens per second next to vLLM and llama.cpp, adapters inside vLLM, open-loop load."""

from __future__ import annotations

from benchmarks.figures.markdown import Lines, span, table
from benchmarks.figures.sources import Results

COUNTS = (1, 4, 16)
ENGINES = {
    ("ours in vllm", "plain"): "dlp-serve inside vLLM, plain",
    ("ours in vllm", "k=1"): "dlp-serve inside vLLM, one adapter per request",
    ("ours in vllm", "k=2"): "dlp-serve inside vLLM, a mix of 2 per request",
    ("ours in vllm", "k=3"): "dlp-serve inside vLLM, a mix of 3 per request",
    ("ours", "plain"): "dlp-serve over transformers, plain",
    ("ours", "k=1"): "dlp-serve over transformers, one adapter per request",
    ("ours", "k=2"): "dlp-serve over transformers, a mix of 2 per request",
    ("ours", "k=3"): "dlp-serve over transformers, a mix of 3 per request",
    ("vllm", "plain"): "vLLM for CPUs, plain",
    ("vllm", "k=1"): "vLLM for CPUs, one adapter per request",
    ("llama.cpp", "plain"): "llama.cpp, plain",
    ("llama.cpp", "k=2"): "llama.cpp, a mix of 2 per request",
}
INSIDE = {
    "8": "mixes of 2 of 8 adapters, q and v at rank 8",
    "beside 100": "the same mixes, 100 adapters resident",
    "all linear": "mixes of 2 of 8 adapters, all linear layers at rank 16",
}
TRAFFIC = {
    "plain": "plain",
    "one": "one adapter",
    "k=3": "mixes of 3",
    "k=3 of 100": "mixes of 3 of 100 in 32 slots",
}


def throughput(results: Results) -> Lines:
    """Tokens per second of every engine, with 1, 4 and 16 requests together, and CPU time a token."""
    rates, cpu = _rates(results), _column(results, "cpu_ms_per_token")
    rows = [
        [
            text,
            *(f"{rates[(*side, count)]:.3g}" for count in COUNTS),
            *(f"{cpu[(*side, count)]:.3g}" for count in COUNTS),
        ]
        for side, text in ENGINES.items()
    ]
    return table(["", "tokens/s: 1 request", "4", "16", "CPU ms a token: 1 request", "4", "16"], rows)


def inside_vllm(results: Results) -> Lines:
    """What adapters cost inside vLLM, by how many are resident and how many layers they change."""
    cells = {(row["side"], row["sequences"]): row for row in results["inside_vllm"]["rows"]}
    rows = [
        [
            text,
            *(f"{cells[side, count]['over_plain']:.2f}" for count in COUNTS),
            f"{cells[side, 16]['tokens_per_s']:.0f}",
        ]
        for side, text in INSIDE.items()
    ]
    return table(["CPU a token over vLLM's plain", "1 request", "4", "16", "tokens/s at 16"], rows)


def inside_cpu(results: Results) -> str:
    """CPU time a token of plain vLLM over that of mixes of 2 inside it, 1 to 16 requests."""
    return span(_targets(results, "CPU a token, vLLM's plain over k=2 inside vLLM"), ".2f")


def inside_over_lora(results: Results) -> str:
    """Tokens per second of mixes of 2 inside vLLM over vLLM's own LoRA, one adapter per request, 16 requests."""
    [ratio] = _targets(results, "tokens/s, k=2 inside vLLM over vLLM's one adapter")
    return f"{ratio:.1f}"


def inside_over_transformers(results: Results) -> str:
    """Tokens per second of mixes of 2 inside vLLM over the same on the engine over transformers, 16 requests."""
    [ratio] = _targets(results, "tokens/s, k=2 inside vLLM over transformers")
    return f"{ratio:.1f}"


def vllm_lora(results: Results) -> str:
    """Our tokens per second under mixes of 2 relative to vLLM's under one adapter, 1 to 16 requests."""
    return span(_targets(results, "tokens/s, k=2 over vLLM's one adapter"), ".1f")


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


def _targets(results: Results, what: str) -> list[float]:
    """The ratios of a target, for each number of requests it has."""
    return [row["ratio"] for row in results["throughput"]["targets"] if row["what"].rpartition(", ")[0] == what]


def _rates(results: Results) -> dict[tuple[str, str, int], float]:
    return _column(results, "tokens_per_s")


def _column(results: Results, name: str) -> dict[tuple[str, str, int], float]:
    rows = results["throughput"]["rows"]
    return {(row["engine"], row["side"], row["sequences"]): row[name] for row in rows}


def _ratios(results: Results, side: tuple[str, str], base: tuple[str, str]) -> list[float]:
    """Ratios of one side's tokens per second to another's, at 1, 4 and 16 requests."""
    rates = _rates(results)
    return [rates[(*side, count)] / rates[(*base, count)] for count in COUNTS]
