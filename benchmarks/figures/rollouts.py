"""Figures of canaries: how soon a broken one is found, and how often one that is not."""

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


def _nulls(results: Results) -> list[Result]:
    return [row for row in results["canary"]["rows"] if row["worse"] == "none"]


def _requests(row: Result) -> str:
    missed = "" if row["alarms"] == row["runs"] else f"; {row['runs'] - row['alarms']} of {row['runs']} not found"
    return f"{row['requests_median']:,.0f} ({row['requests_p95']:,}){missed}"
