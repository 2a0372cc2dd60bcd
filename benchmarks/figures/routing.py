"""Figures of the router, of affinity routing to replicas, and of autoscaling."""

from __future__ import annotations

from benchmarks.figures.markdown import Lines, table
from benchmarks.figures.sources import Results

LOADS = {
    "steady": "11 requests at a time",
    "bursts": "bursts of 12 requests",
    "long_prompts": "6 long prompts at a time",
    "mixes": "mixes of 2 of 3 adapters, 2 slots",
}
POLICIES = {"affinity": "affinity", "power_of_two": "power of two choices"}


def router_quality(results: Results) -> Lines:
    """The router on held-out prompts of the 26 tasks, and on tasks left out of its training."""
    scores = results["router_eval"]
    rows = [
        ["right adapter ranked first", f"{scores['accuracy']:.2%}"],
        ["calibration error", f"{scores['ece']:.3f}"],
        ['kept (not refused as "none of these")', f"{scores['kept']:.1%}"],
        ["right adapter, with typos", f"{scores['typos']:.1%}"],
        ["right adapter, without instructions", f"{scores['bare']:.1%}"],
        ['trained without 4 tasks at a time: AUROC of "none of these"', f"{scores['unseen_auroc']:.3f}"],
        ["the same: prompts of unseen tasks refused", f"{scores['unseen_refused']:.0%}"],
        ["the same: prompts of the other tasks kept", f"{scores['unseen_kept']:.1%}"],
        ["one prompt, median and 99th percentile", f"{scores['p50_ms']:.2f} ms, {scores['p99_ms']:.2f} ms"],
        ["prompts/s in batches", f"{scores['prompts_per_s']:,.0f}"],
        ["parameters", f"{scores['parameters'] / 1e6:.1f} million"],
        ["training", f"{scores['training_s']:.0f} s"],
    ]
    return table([f"{scores['rows']:,} held-out prompts", "measured"], rows)


def router_right(results: Results) -> str:
    """Share of held-out prompts of the 26 tasks whose likeliest adapter is the right one."""
    return f"{results['router_eval']['accuracy']:.2%}"


def router_p50(results: Results) -> str:
    """The router's median time per prompt on one thread."""
    return f"{results['router_eval']['p50_ms']:.2f} ms"


def router_p99(results: Results) -> str:
    """The router's 99th percentile time per prompt on one thread."""
    return f"{results['router_eval']['p99_ms']:.2f} ms"


def router_growth(results: Results) -> Lines:
    """An adapter added with 16 examples, a router of 1,000 adapters, and long prompts."""
    router = results["router"]
    growth, scale, long = router["growth"], router["scale"], router["long"]
    rows = [
        ["right adapter on the new task, mean", f"{growth['right_mean']:.1%}"],
        ["the same, worst task", f"{growth['right_least']:.0%}"],
        ["new adapter in the mix, mean", f"{growth['in_the_mix_mean']:.1%}"],
        ["points lost on the other tasks, mean", f"{100 * growth['others_lose_mean']:.1f}"],
        ["the same, worst task", f"{100 * growth['others_lose_most']:.1f}"],
        ["time to add it, mean", f"{growth['seconds_mean']:.1f} s"],
        [f"{scale['adapters']:,} adapters, 950 trained: right adapter", f"{scale['right']:.1%}"],
        ["the same after 50 more are added", f"{scale['right_after_adding']:.1%}"],
        ["right adapter on the 50 added ones", f"{scale['added_right']:.1%}"],
        ["one prompt, 26 adapters, median and 99th percentile", _percentiles(scale, "tasks_")],
        [f"one prompt, {scale['adapters']:,} adapters", _percentiles(scale, "thousand_")],
        [f"one prompt of {long['characters']:,} characters, 26 adapters", _percentiles(long)],
    ]
    return table([f"a task added by {growth['examples']} examples, {growth['runs']} times", "measured"], rows)


def router_latency(results: Results) -> Lines:
    """Latency of the demo bank's router, and of the same router widened to more adapters."""
    rows = [
        [f"{row['adapters']:,}", _percentiles(row), f"{row['prompts_per_s']:,}", f"{row['load_ms']:.0f} ms"]
        for row in results["router_latency"]["rows"]
    ]
    return table(["adapters", "one prompt, median and 99th percentile", "prompts/s in batches", "loading"], rows)


def affinity(results: Results) -> Lines:
    """Adapter loads and load balance under affinity and power of two choices: on a cluster and simulated."""
    cluster = {"measured, 3 replicas, 60 adapters": results["affinity_cluster"]}
    simulated = {f"simulated, {name}": outcomes for name, outcomes in results["affinity"].items()}
    rows = [
        [f"{name}: {text}", f"{outcomes[policy]['loads_per_1000']:,.0f}", f"{outcomes[policy]['busiest']:.2f}"]
        for name, outcomes in (cluster | simulated).items()
        for policy, text in POLICIES.items()
    ]
    return table(["setup: policy", "loads per 1,000 requests", "busiest replica over the mean"], rows)


def autoscaling(results: Results) -> Lines:
    """Serve's target number of replicas under each kind of load, and how fast it changes."""
    rows = []
    for name, trace in results["autoscaling"]["traces"].items():
        samples = trace["seen"]
        max_target = max(sample["target"] for sample in samples)
        last_busy = max(sample["time"] for sample in samples if sample["requests"])
        up = down = "stays at 1"
        if max_target > 1:
            reached = next(sample["time"] for sample in samples if sample["target"] == max_target)
            back = next(sample["time"] for sample in samples if sample["time"] > last_busy and sample["target"] == 1)
            up, down = f"{reached} s", f"{back - last_busy} s"
        answered = f"{trace['answers'].get('200', 0)} of {sum(trace['answers'].values())}"
        rows.append([LOADS[name], max_target, up, down, answered])
    columns = ["peak target", "reached after", "back to 1 after the last request", "answered"]
    return table(["load", *columns], rows)


def _percentiles(latencies: dict[str, float], prefix: str = "") -> str:
    return f"{latencies[f'{prefix}p50_ms']:.2f} ms, {latencies[f'{prefix}p99_ms']:.2f} ms"
