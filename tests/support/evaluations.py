"""Results of two banks on one suite, of which the second lost a task, as `dlp eval` makes them."""

from __future__ import annotations

from datetime import UTC, datetime

from dlp_core.eval.results import Results

SCORES = ([1.0] * 20 + [0.0] * 5, [0.0] * 20 + [1.0] * 5)


def two_evaluations(versions: tuple[str, str] = ("bank-0", "bank-1")) -> list[Results]:
    """Of two tasks, the second bank loses 60 points on `sql`, and 30 on the mean."""
    return [_evaluation(number, version) for number, version in enumerate(versions)]


def _evaluation(number: int, version: str) -> Results:
    scores = SCORES[number]
    rows = {f"r{n}": {"task": "sql", "scores": {"top-p=0.9": score}} for n, score in enumerate(scores)}
    rows |= {f"s{n}": {"task": "dates", "scores": {"top-p=0.9": 1.0}} for n in range(25)}
    mean = 100 * sum(scores) / len(scores)
    tasks = {
        name: {"rows": 25, "score": {"mean": value, "low": value, "high": value}, "metrics": {}}
        for name, value in (("sql", mean), ("dates", 100.0))
    }
    overall = (mean + 100) / 2
    return Results.model_validate(
        {
            "created": datetime(2026, 11, 20 + number, 10, tzinfo=UTC),
            "suite": {"name": "people", "digest": "79e4d5c75def", "rows": 50, "seed": 0},
            "bank": {
                "version": version,
                "digest": f"sha256:{number}",
                "base_model": "m",
                "adapters": 2,
                "router": None,
            },
            "setup": "m in bfloat16",
            "seconds": 1.0,
            "arms": [
                {
                    "name": "top-p=0.9",
                    "score": {"mean": overall, "low": overall, "high": overall},
                    "tasks": tasks,
                    "adapters": 1.0,
                    "plain": 0.0,
                    "choices": str(number),
                }
            ],
            "router": None,
            "composites": [],
            "rows": rows,
        }
    )
