"""The trial of a canary: who gets it, what is counted, and when it is an alarm."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from dlp_core.fleet.trial import BUCKETS, SIGNALS, WARM, Counts, Draw, Lottery, Outcome, Trial, total

RUNS = 100
SHARES = [0.05, 0.2, 0.5]
BASE = {"negative": 0.1, "abstained": 0.08, "error": 0.002}
"""Rates of a bank that is well."""


def trial(share: float = 0.2, *, sticky_by: str = "none", id: str = "t1") -> Trial:
    return Trial(Lottery(id, share, sticky_by), serving="old", canary="new")  # type: ignore[arg-type]


def requests(trial: Trial, chance: random.Random, canary: dict[str, float], user: str | None = None) -> Iterator[None]:
    """Requests whose answers are rated, of a canary with these rates."""
    while True:
        draw = trial.lottery.draw(user=user, key=None, request=f"{chance.random()}")
        rates = BASE | canary if draw.canary else BASE
        error = chance.random() < rates["error"]
        seconds = None if error else chance.lognormvariate(0, 0.5) * (rates.get("times", 1.0))
        trial.ended(draw, Outcome(chance.random() < rates["abstained"], error, seconds))
        trial.record_feedback("new" if draw.canary else "old", chance.random() < rates["negative"])
        yield


def alarm_after(trial: Trial, chance: random.Random, canary: dict[str, float], most: int) -> int | None:
    """Requests until the alarm, looked for after every tenth; None without one."""
    for number, _ in zip(range(1, most + 1), requests(trial, chance, canary), strict=False):
        if number % 10 == 0 and trial.lottery.judge(trial.counts()).alarm:
            return number
    return None


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("sticky_by", ["user", "key", "none"])
def test_the_share_is_kept_and_what_is_sticky_stays(share: float, sticky_by: str) -> None:
    lottery = Lottery("t1", share, sticky_by)  # type: ignore[arg-type]
    names = [f"name-{number}" for number in range(4000)]
    draws = [lottery.draw(user=name, key=name, request=f"r{number}") for number, name in enumerate(names)]
    again = [lottery.draw(user=name, key=name, request=f"s{number}") for number, name in enumerate(names)]
    assert sum(draw.canary for draw in draws) / len(names) == pytest.approx(share, abs=0.03)
    assert (draws == again) == (sticky_by != "none")
    other = Lottery("t2", share, sticky_by)  # type: ignore[arg-type]
    assert draws != [other.draw(user=name, key=name, request=f"r{number}") for number, name in enumerate(names)]
    lone = [lottery.draw(user=None, key=None, request=name) for name in names]
    assert sum(draw.canary for draw in lone) / len(names) == pytest.approx(share, abs=0.03)
    assert all(draw.bucket is None for draw in lone)


def test_users_are_drawn_by_bucket() -> None:
    lottery = Lottery("t1", 0.2, "user")
    for number in range(500):
        draw = lottery.of_user(f"user-{number}")
        assert draw.bucket is not None
        assert 0 <= draw.bucket < BUCKETS
        assert draw.canary == bool(lottery.canary_buckets >> draw.bucket & 1)
    assert lottery.canary_buckets.bit_count() / BUCKETS == pytest.approx(0.2, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("share", SHARES)
def test_of_a_hundred_canaries_that_are_no_worse_at_most_one_in_a_hundred_alarms(share: float) -> None:
    """What is stated is 1%, over all signals and however often it is looked at: 5 of 100 would disprove it."""
    chance = random.Random(7)
    alarms = [alarm_after(trial(share, id=f"null-{run}"), chance, {}, 1000) for run in range(RUNS)]
    assert sum(alarm is not None for alarm in alarms) <= 2


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(
    ("canary", "most"),
    [({"error": 0.5}, 400), ({"negative": 0.6}, 1000), ({"abstained": 0.6}, 1000), ({"times": 3.0}, 2000)],
    ids=str,
)
def test_a_broken_canary_is_found(share: float, canary: dict[str, float], most: int) -> None:
    chance = random.Random(11)
    for run in range(3):
        one = trial(share, id=f"broken-{run}")
        assert alarm_after(one, chance, canary, most) is not None
        name = next(iter(canary))
        assert one.lottery.judge(one.counts()).worst == {"times": "slow"}.get(name, name)


def test_a_user_who_always_complains_counts_once() -> None:
    """Drawn by request they would be many events; drawn by user they are one draw of the lot."""
    one = trial(sticky_by="user")
    user = next(f"user-{number}" for number in range(99) if one.lottery.of_user(f"user-{number}").canary)
    for _ in range(500):
        one.ended(one.lottery.of_user(user), Outcome(error=True))
    verdict = one.lottery.judge(one.counts())
    assert one.counts().error.canary == 500
    assert not verdict.alarm
    by_request = trial(sticky_by="none")
    for _ in range(500):
        by_request.ended(Draw(canary=True), Outcome(error=True))
    assert by_request.lottery.judge(by_request.counts()).alarm


def test_replicas_add_up_and_count_a_user_once_together() -> None:
    lottery = Lottery("t1", 0.2, "user")
    users = [f"user-{number}" for number in range(200)]
    alone = Trial(lottery, serving="old", canary="new")
    replicas = [Trial(lottery, serving="old", canary="new") for _ in range(3)]
    for number, user in enumerate(users * 3):
        for one in (alone, replicas[number % 3], replicas[(number + 1) % 3]):
            one.ended(lottery.of_user(user), Outcome(abstained=True))
    together = total(one.counts() for one in replicas)
    assert together.serving + together.canary == 2 * 600
    assert together.abstained.users == alone.counts().abstained.users
    assert lottery.judge(together) == lottery.judge(alone.counts())
    assert Counts.model_validate_json(together.model_dump_json(exclude_defaults=True)) == together


def test_feedback_counts_for_the_version_that_answered() -> None:
    one = trial()
    one.record_feedback("old", negative=True)
    one.record_feedback("new", negative=False)
    one.record_feedback("older", negative=True)
    counts = one.counts()
    assert (counts.rated_serving, counts.rated_canary) == (1, 1)
    assert (counts.negative.serving, counts.negative.canary) == (1, 0)


def test_feedback_on_what_a_user_was_not_drawn_for_is_ignored() -> None:
    one = trial(0.5, sticky_by="user")
    user = next(f"user-{number}" for number in range(99) if one.lottery.of_user(f"user-{number}").canary)
    one.record_feedback("old", negative=True, user=user)  # from before the trial
    assert one.counts() == Counts()
    one.record_feedback("new", negative=True, user=user)
    one.record_feedback("new", negative=True, user=user)
    assert one.counts().negative.canary == 2
    assert one.counts().negative.buckets.bit_count() == 1


def test_slow_is_slower_than_nine_tenths_of_what_the_serving_bank_did_before() -> None:
    one = trial()
    for number in range(WARM):
        assert one.counts().slow.serving == 0, "there is no quantile yet"
        one.ended(Draw(canary=False), Outcome(seconds=1 + number / WARM))
    for seconds, slow in [(1.89, 0), (1.895, 1), (5.0, 2)]:
        one.ended(Draw(canary=True), Outcome(seconds=seconds))
        assert one.counts().slow.canary == slow
    for _ in range(600):  # a slower hour for both: the old times leave the window
        one.ended(Draw(canary=False), Outcome(seconds=9.0))
    one.ended(Draw(canary=True), Outcome(seconds=9.0))
    assert one.counts().slow.canary == 2


def test_every_signal_has_its_counts() -> None:
    assert set(SIGNALS) < set(Counts.model_fields)
