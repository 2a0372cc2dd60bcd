"""Figures of canaries, how soon a broken one is found, and how often one that is not; and of `dlp improve`."""

from __future__ import annotations

from benchmarks.figures.markdown import Lines, table
from benchmarks.figures.sources import Result, Results

SHARES = (0.05, 0.2, 0.5)


def canary(results: Results) -> Lines:
    """Requests until the alarm: the median, and the 95th percentile, by what is worse and the canary's share."""
    rows: dict[tuple[str, str], dict[float, Result]] = {}
    for row in results["canary"]["rows"]:
        if row["worse"] != "none":
            rows.setdefault((row["worse"], row["by"]), {})[row["share"]] = row
    return table(
        ["what is worse", *(f"share {100 * share:.0f}%" for share in SHARES)],
        [
            [f"{worse}: {size}", *(_requests(by_share[share]) for share in SHARES)]
            for (worse, size), by_share in sorted(rows.items())
        ],
    )


def canary_nulls(results: Results) -> str:
    """Alarms of canaries that are no worse."""
    return str(sum(row["alarms"] for row in _nulls(results)))


def canary_null_runs(results: Results) -> str:
    """Trials of canaries that are no worse."""
    return f"{sum(row['runs'] for row in _nulls(results)):,}"


def drift(results: Results) -> Lines:
    """Percentages served right before and after the drift, during the canary, and after each run; and the steps."""
    found = results["drift"]
    simulation = found["simulations"][0]
    first = simulation["runs"][0]
    rows = [
        ["before the drift", _served(simulation["before"])],
        ["after it, without the loop", _served(simulation["drifted"])],
    ]
    if "canary_lowest" in first:
        least = f"{found['window']} requests"
        rows += [
            ["while the canary ran", _served(first["canary_served"])],
            [f"its lowest {least}", _served(first["canary_lowest"])],
            [
                f"the most that {least} were below the old bank",
                f"{max(0.0, first['canary_lowest_below_the_old']):.1f} points",
            ],
        ]
    for number, entry in enumerate(simulation["runs"], 1):
        rows.append([f"after run {number}: {entry['state'].replace('_', ' ')}", _served(entry["after"])])
    last, noise = simulation["runs"][-1], first["noise"]
    rows += [
        ["people.jsonl and handwritten.jsonl, before", _served(simulation["people_before"])],
        ["the same, at the end", _served(last["people_after"])],
        ["wrong labels that were set aside", f"{noise['wrong_and_suspect']} of {noise['wrong']}"],
        [
            "right ones that were",
            f"{noise['suspect'] - noise['wrong_and_suspect']} of {noise['rows'] - noise['wrong']}",
        ],
    ]
    verdict = "met" if found["recovered"] else "**missed**"
    return [
        *table(["served right", "simulated"], rows),
        "",
        f"Target, within {found['within']:g} point of what it was: {verdict}.",
    ]


def _served(percent: float) -> str:
    return f"{percent:.1f}%"


def _nulls(results: Results) -> list[Result]:
    return [row for row in results["canary"]["rows"] if row["worse"] == "none"]


def _requests(row: Result) -> str:
    missed = "" if row["alarms"] == row["runs"] else f"; {row['runs'] - row['alarms']} of {row['runs']} not found"
    return f"{row['requests_median']:,.0f} ({row['requests_p95']:,}){missed}"
