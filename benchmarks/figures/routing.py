"""Figures of the router, of affinity routing to replicas, and of autoscaling."""

from __future__ import annotations

from statistics import fmean

from benchmarks.figures.markdown import Lines, table
from benchmarks.figures.sources import Results

LOADS = {
    "steady": "11 requests at a time",
    "bursts": "bursts of 12 requests",
    "long_prompts": "6 long prompts at a time",
    "mixes": "mixes of 2 of 3 adapters, 2 slots",
}
POLICIES = {"affinity": "affinity", "power_of_two": "power of two choices"}


def router_people(results: Results) -> Lines:
    """The router on what people write: the worst of the seeds for each measure."""
    seeds = results["router_people"]["seeds"]

    def least(name: str, *, percent: int = 1) -> str:
        return f"{min(seed[name] for seed in seeds):.{percent}%}"

    def most(name: str) -> float:
        return float(max(seed[name] for seed in seeds))

    typos = max(seed["accuracy"] - seed["typos"] for seed in seeds)
    rows = [
        ["right adapter ranked first", least("accuracy")],
        ["right adapter in the mix; adapters in a mix", f"{least('in_mix')}; {most('mix_size'):.2f}"],
        ["both adapters in the mix of a prompt of two tasks", least("pairs")],
        ["strangers told apart: AUROC", f"{min(seed['unknown_auroc'] for seed in seeds):.3f}"],
        ["strangers refused where 95% of its own are kept", least("unknown_refused_at_95")],
        ["kept at the default threshold; strangers refused", f"{least('kept')}; {least('unknown_refused')}"],
        ["points lost by typos in 5% of the characters", f"{100 * typos:.1f}"],
        ["calibration error", f"{most('ece'):.3f}"],
        ["one prompt, median and 99th percentile", f"{most('p50_ms'):.2f} ms, {most('p99_ms'):.2f} ms"],
        ["parameters", f"{most('parameters') / 1e6:.2f} million"],
    ]
    return table([f"{seeds[0]['rows']:,} prompts, worst of {len(seeds)} seeds", "measured"], rows)


def router_people_right(results: Results) -> str:
    """Share of people's prompts whose likeliest adapter is the right one, worst seed."""
    return f"{min(seed['accuracy'] for seed in results['router_people']['seeds']):.1%}"


def router_people_refused(results: Results) -> str:
    """Share of strangers refused where 95% of the router's own prompts are kept, worst seed."""
    return f"{min(seed['unknown_refused_at_95'] for seed in results['router_people']['seeds']):.0%}"


def passages(results: Results) -> Lines:
    """Share of the characters whose mix begins with their own task's adapter, by how the mix is chosen."""
    ways = {
        "list": "joined as a numbered list",
        "intro": "a list after a line of introduction",
        "paragraphs": "as paragraphs",
        "lines": "as lines",
    }
    banks = {26: "26 tasks of BIG-bench, one task each", 8: "the demo's 8 tasks, one task each"}
    measured = results["passages"]["rows"]
    rows = []
    for adapters, name in banks.items():
        for kind, title in {"one task": name, **ways}.items():
            sets = [row for row in measured if row["adapters"] == adapters and row["prompts"].split(",")[0] == kind]
            shares = [fmean(row[way] for row in sets) for way in ("request", "alone", "passages", "parts")]
            rows.append([title, *(f"{100 * share:.1f}" for share in shares)])
    return table(["prompts", "one mix per request", "each sentence alone", "by passage", "parts known"], rows)


def router_growth(results: Results) -> Lines:
    """Adapters added to a router that was trained without them, by what it was told of them."""
    growth = results["router"]["growth"]
    rows = [
        [
            known_by,
            f"{means['right']:.1%}",
            f"{means['right_least']:.0%}",
            f"{100 * means['others_lose']:.2f}",
            f"{means['seconds']:.1f} s",
        ]
        for known_by, means in growth.items()
        if isinstance(means, dict)
    ]
    columns = [f"{growth['tasks']} tasks, each added by", "right", "worst task", "points the others lose", "time"]
    return table(columns, rows)


def router_p50(results: Results) -> str:
    """The router's median time per prompt on one thread, slowest seed."""
    return f"{max(seed['p50_ms'] for seed in results['router_people']['seeds']):.2f} ms"


def router_p99(results: Results) -> str:
    """The router's 99th percentile time per prompt on one thread, slowest seed."""
    return f"{max(seed['p99_ms'] for seed in results['router_people']['seeds']):.2f} ms"


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
