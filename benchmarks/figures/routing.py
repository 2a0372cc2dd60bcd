"""Figures of the router, and of which replica runs a request and how many replicas there are."""

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
    """The router on the held-out prompts of the 26 tasks, and on tasks it was trained without."""
    found = results["router_eval"]
    rows = [
        ["right adapter ranked first", f"{found['accuracy']:.2%}"],
        ["calibration error", f"{found['ece']:.3f}"],
        ['kept (not refused as "none of these")', f"{found['kept']:.1%}"],
        ["right adapter, with typos", f"{found['typos']:.1%}"],
        ["right adapter, without instructions", f"{found['bare']:.1%}"],
        ['trained without 4 tasks at a time: AUROC of "none of these"', f"{found['unseen_auroc']:.3f}"],
        ["the same: prompts of unseen tasks refused", f"{found['unseen_refused']:.0%}"],
        ["the same: prompts of the other tasks kept", f"{found['unseen_kept']:.1%}"],
        ["one prompt, median and 99th percentile", f"{found['p50_ms']:.2f} ms, {found['p99_ms']:.2f} ms"],
        ["prompts/s in batches", f"{found['prompts_per_s']:,.0f}"],
        ["parameters", f"{found['parameters'] / 1e6:.1f} million"],
        ["training", f"{found['training_s']:.0f} s"],
    ]
    return table([f"{found['rows']:,} held-out prompts", "measured"], rows)


def router_right(results: Results) -> str:
    """Share of held-out prompts of the 26 tasks whose likeliest adapter is the right one."""
    return f"{results['router_eval']['accuracy']:.2%}"


def router_p50(results: Results) -> str:
    """The router's time for a prompt on one thread, median."""
    return f"{results['router_eval']['p50_ms']:.2f} ms"


def router_p99(results: Results) -> str:
    """The router's time for a prompt on one thread, 99th percentile."""
    return f"{results['router_eval']['p99_ms']:.2f} ms"


def router_growth(results: Results) -> Lines:
    """An adapter added by 16 examples, a router of 1,000 adapters, and long prompts."""
    found = results["router"]
    growth, scale, long = found["growth"], found["scale"], found["long"]
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
    """The demo bank's router, and the same widened to more adapters."""
    rows = [
        [f"{row['adapters']:,}", _percentiles(row), f"{row['prompts_per_s']:,}", f"{row['load_ms']:.0f} ms"]
        for row in results["router_latency"]["rows"]
    ]
    return table(["adapters", "one prompt, median and 99th percentile", "prompts/s in batches", "loading"], rows)


def affinity(results: Results) -> Lines:
    """Adapter loads and balance, by affinity and by power of two choices: on a cluster and simulated."""
    cluster = {"measured, 3 replicas, 60 adapters": results["affinity_cluster"]}
    simulated = {f"simulated, {name}": found for name, found in results["affinity"].items()}
    rows = [
        [f"{name}: {text}", f"{found[policy]['loads_per_1000']:,.0f}", f"{found[policy]['busiest']:.2f}"]
        for name, found in (cluster | simulated).items()
        for policy, text in POLICIES.items()
    ]
    return table(["setup: policy", "loads per 1,000 requests", "busiest replica over the mean"], rows)


def autoscaling(results: Results) -> Lines:
    """How many replicas Serve aimed at under each kind of load, and how soon."""
    rows = []
    for name, found in results["autoscaling"]["traces"].items():
        seen = found["seen"]
        most = max(point["target"] for point in seen)
        last_busy = max(point["time"] for point in seen if point["requests"])
        up = down = "stays at 1"
        if most > 1:
            first = next(point["time"] for point in seen if point["target"] == most)
            again = next(point["time"] for point in seen if point["time"] > last_busy and point["target"] == 1)
            up, down = f"{first} s", f"{again - last_busy} s"
        answered = f"{found['answers'].get('200', 0)} of {sum(found['answers'].values())}"
        rows.append([LOADS[name], most, up, down, answered])
    columns = ["peak target", "reached after", "back to 1 after the last request", "answered"]
    return table(["load", *columns], rows)


def _percentiles(found: dict[str, float], prefix: str = "") -> str:
    return f"{found[f'{prefix}p50_ms']:.2f} ms, {found[f'{prefix}p99_ms']:.2f} ms"
