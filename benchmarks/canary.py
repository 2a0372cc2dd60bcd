"""How soon the trial of a canary finds a broken one, and how often it calls one broken that is not, simulated.

    .venv/bin/python -m benchmarks.canary --out benchmarks/results/canary.json

The draw, the counts and the test are those of production (dlp_core/fleet/trial.py), which looks after every LOOK
requests. A healthy bank errs at 0.2% of requests, chooses no adapter at 8%, and gets negative feedback on 10% of its
answers, all of which are rated; its times are lognormal. A broken canary has one of these rates raised by 10, 30 or 50
points of 100, or takes longer by a factor. Requests are independent, as with `--sticky-by none`, except where users are
named: then a user in twenty errs and complains always. Needs neither a model nor Ray.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from math import ceil
from pathlib import Path
from random import Random
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks.measure.harness import report, run
from dlp_core.fleet.trial import ALARM, Counts, Lottery, Outcome, Trial, total

SHARES = (0.05, 0.2, 0.5)
LOSSES = (0.1, 0.3, 0.5)
LOOK = 25
RUNS = 100
NULL_REQUESTS = 10_000
"""Requests of a trial without a difference."""
MOST = 40_000
"""Requests after which a broken canary counts as not found."""
ERRORS, ABSTENTIONS, NEGATIVE = 0.002, 0.08, 0.1


@dataclass(frozen=True)
class Case:
    """One kind of trial: what the canary's rates gain, and how requests come."""

    share: float
    error: float = 0.0
    negative: float = 0.0
    slower: float = 1.0
    users: int | None = None
    replicas: int = 1


def alarm(case: Case, number: int, most: int) -> tuple[int, int] | None:
    """Requests until the alarm, all and the canary's; None without one."""
    chance = Random(f"{case} {number}")
    lottery = Lottery(f"{case} {number}", case.share, "none" if case.users is None else "user")
    replicas = [Trial(lottery, serving="old", canary="new") for _ in range(case.replicas)]
    shared = [Counts() for _ in replicas]
    for request in range(1, most + 1):
        replica = chance.randrange(case.replicas)
        _serve(case, replicas[replica], chance, request)
        if request % LOOK == 0:
            written = chance.randrange(case.replicas)  # the other ones' counts are those of earlier
            shared[written] = replicas[written].counts()
            sums = total(shared)
            if lottery.judge(sums).alarm:
                return request, sum(one.counts().canary for one in replicas)
    return None


def _serve(case: Case, trial: Trial, chance: Random, request: int) -> None:
    user = None if case.users is None else chance.randrange(case.users)
    name = None if user is None else f"user-{user}"
    draw = trial.lottery.draw(user=name, key=None, request=f"{request}")
    always = user is not None and user % 20 == 0
    error = always or chance.random() < ERRORS + case.error * draw.canary
    seconds = None if error else chance.lognormvariate(0.0, 0.6) * (case.slower if draw.canary else 1.0)
    trial.ended(draw, Outcome(chance.random() < ABSTENTIONS, error, seconds))
    if not error:
        negative = always or chance.random() < NEGATIVE + case.negative * draw.canary
        trial.record_feedback("new" if draw.canary else "old", negative, user=name)


def _run(job: tuple[Case, int, int]) -> tuple[int, int] | None:
    return alarm(*job)


def main(
    out: Annotated[Path | None, typer.Option(help="Where the result goes; default: standard output.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Trials of each kind.")] = RUNS,
) -> None:
    kinds: list[tuple[str, str, Case, int]] = [("none", "", Case(share), NULL_REQUESTS) for share in SHARES]
    kinds += [
        ("none", "500 users, one in 20 always bad", Case(0.2, users=500), NULL_REQUESTS),
        ("none", "3 replicas, counts shared late", Case(0.2, replicas=3), NULL_REQUESTS),
    ]
    for loss, share in product(LOSSES, SHARES):
        kinds.append(("errors", f"+{100 * loss:.0f} points", Case(share, error=loss), MOST))
        kinds.append(("negative ratings", f"+{100 * loss:.0f} points", Case(share, negative=loss), MOST))
    kinds += [
        ("times", f"{slower:g} times", Case(share, slower=slower), MOST) for slower in (1.5, 3) for share in SHARES
    ]
    jobs = [(case, number, most) for _, _, case, most in kinds for number in range(runs)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        ends = list(pool.map(_run, jobs, chunksize=10))
    rows: list[dict[str, Any]] = []
    for index, (signal, size, case, _) in enumerate(kinds):
        found = sorted(end for end in ends[index * runs : (index + 1) * runs] if end is not None)
        row: dict[str, Any] = {"worse": signal, "by": size, "share": case.share, "alarms": len(found), "runs": runs}
        if signal != "none" and found:
            row |= {
                "requests_median": median(requests for requests, _ in found),
                "requests_p95": found[ceil(0.95 * len(found)) - 1][0],
                "canary_requests_median": median(canary for _, canary in found),
            }
        rows.append(row)
    report(
        "canary",
        rows,
        out=out,
        alarm_rate=ALARM,
        null_requests=NULL_REQUESTS,
        most_requests=MOST,
        look_every=LOOK,
        rates={"error": ERRORS, "abstained": ABSTENTIONS, "negative": NEGATIVE},
    )


if __name__ == "__main__":
    run(main)
