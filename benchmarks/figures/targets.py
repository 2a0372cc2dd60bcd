"""Figures of the targets and their measured ratios, and those of the front page."""

from __future__ import annotations

import re

from benchmarks.figures.decoding import decode_mix
from benchmarks.figures.engines import vllm_lora, vllm_plain
from benchmarks.figures.markdown import Lines, table
from benchmarks.figures.quality import bigbench_oracle, bigbench_plain, bigbench_routed
from benchmarks.figures.routing import router_p50, router_p99, router_people_refused, router_people_right
from benchmarks.figures.serving import http_two_threads
from benchmarks.figures.sources import Result, Results

WITH_TARGETS = ("decode_step", "prefill", "throughput", "cold_start", "http_path", "http_path_one_thread")
"""Results with targets."""

DESCRIPTIONS = {
    "idle over base": "decode step, no adapter active, over the plain model",
    "k=3 over base": "decode step, a different mix of 3 for each row, over the plain model",
    "k=3 over k=1": "decode step, mixes of 3 over one adapter for each row",
    "k=3 beside 100 over k=3": "decode step, 100 adapters resident over 8, same mixes",
    "k=2 over base, all linear layers at rank 16": "decode step, mixes of 2, all linear layers at rank 16",
    "prefill of 512 tokens, k=3 over base": "prompt of 512 tokens, a mix of 3, over the plain model",
    "tokens/s, k=2 over vLLM's one adapter": "tokens/s with mixes of 2, over vLLM's with one adapter",
    "HTTP (serve) over the engine": "tokens/s over HTTP, Serve's own proxy, over the engine's",
    "HTTP (throughput) over the engine": "tokens/s over HTTP, throughput mode, over the engine's",
}
COUNTS = (1, 4, 16)
_WITH_COUNT = re.compile(r"(.*), (\d+) (?:sequences?|streams)")


def targets(results: Results) -> Lines:
    """All targets and measured ratios, by the number of sequences or streams. Misses are bold."""
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for name in WITH_TARGETS:
        for target in results[name]["targets"]:
            what, count = _split_count(target["what"])
            text = DESCRIPTIONS.get(what, what)
            if name.startswith("http_path"):
                text += f", {results[name]['threads']} thread{'s' * (results[name]['threads'] > 1)}"
            cells.setdefault((text, _bound(target)), {})[count] = _measured(target)
    rows = [[text, *(ratios.get(count, "") for count in COUNTS), bound] for (text, bound), ratios in cells.items()]
    return table(["ratio", "1", "4", "16", "target"], rows)


def targets_missed(results: Results) -> str:
    """Number of missed targets, out of how many."""
    met = [target["met"] for name in WITH_TARGETS for target in results[name]["targets"]]
    return f"{met.count(False)} of {len(met)}"


def headline(results: Results) -> Lines:
    """The figures of the front page."""
    vllm = f"{vllm_lora(results)} (plain engines: {vllm_plain(results)} in vLLM's favour)"
    quality = " / ".join(figure(results) for figure in (bigbench_plain, bigbench_routed, bigbench_oracle))
    http = http_two_threads(results)
    decode_target = _verdict(results["decode_step"], "k=3 over base")
    vllm_target = _verdict(results["throughput"], "tokens/s, k=2 over vLLM's one adapter")
    http_target = _verdict(results["http_path"], "HTTP (throughput) over the engine")
    right_target = _at_least(results, "accuracy", 0.95)
    refused_target = _at_least(results, "unknown_refused_at_95", 0.88)
    rows = [
        ["a decode step, a different mix of 3 for each row, over the plain model", decode_mix(results), decode_target],
        ["tokens/s with mixes of 2, over vLLM for CPUs with one adapter", vllm, vllm_target],
        ["tokens/s over HTTP in throughput mode, 16 streams, over the engine alone", http, http_target],
        ["26 BIG-bench tasks, points: backbone / routed / the right adapter", quality, ""],
        ["CLINC150, people's words: right adapter, worst of 3 seeds", router_people_right(results), right_target],
        ["the same: strangers refused where 95% are kept", router_people_refused(results), refused_target],
        ["routing a prompt, median / 99th percentile", f"{router_p50(results)} / {router_p99(results)}", ""],
    ]
    return table(["", "measured", "target"], rows)


def _at_least(results: Results, score: str, target: float) -> str:
    """A target of the router, and whether the worst seed meets it."""
    met = min(seed[score] for seed in results["router_people"]["seeds"]) >= target
    return f"at least {target:.0%}: {'met' if met else '**missed**'}"


def _split_count(what: str) -> tuple[str, int]:
    match = _WITH_COUNT.fullmatch(what)
    return (match[1], int(match[2])) if match else (what, 1)


def _bound(target: Result) -> str:
    return f"at {'least' if target['at_least'] else 'most'} {target['bound']:.2f}"


def _verdict(result: Result, what: str) -> str:
    """The bound of a ratio, and whether it was met for every number of sequences or streams."""
    matching = [target for target in result["targets"] if _split_count(target["what"])[0] == what]
    return f"{_bound(matching[0])}: {'met' if all(target['met'] for target in matching) else '**missed**'}"


def _measured(target: Result) -> str:
    """The ratio with two digits, or three where two would hide on which side of the bound it lies."""
    digits = 2 if round(target["ratio"], 2) != target["bound"] or target["met"] else 3
    text = f"{target['ratio']:.{digits}f}"
    return text if target["met"] else f"**{text}**"
