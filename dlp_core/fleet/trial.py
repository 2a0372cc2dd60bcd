"""A canary's trial: which requests get it, what became of them beside those of the serving bank, and the verdict.

Who gets the canary is a hash of the trial's id and of the user, the key or the request, so all replicas agree. Four
signals count (SIGNALS). The verdict is an alarm once the mean of their evidence (dlp_core/fleet/sequential.py) exceeds
1 / ALARM: a canary that is no worse is ever called worse with probability ALARM at most.

Events of one user are not independent: some complain always. So users are drawn by bucket, of BUCKETS, and a bucket
counts once for each signal, whichever replica saw it first: `users` is a set of buckets, as bits. Requests that were
drawn one by one, and those drawn by key, count each time; for keys the bound holds if they are alike.

Use a Trial from one thread. Counts are records, for the store.
"""

from __future__ import annotations

import hashlib
import math
import struct
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field

from dlp_core.fleet.sequential import log_evidence, log_mean_exp
from dlp_core.store.records import Record

Signal = Literal["negative", "abstained", "error", "slow"]
SIGNALS: tuple[Signal, ...] = ("negative", "abstained", "error", "slow")
"""Negative feedback; `auto` without an adapter; an error that is not the client's; slower than SLOW of the serving
bank's latest."""

StickyBy = Literal["user", "key", "none"]

ALARM = 0.01
"""The probability of ever calling a canary worse that is not, over all signals and its whole time."""
BUCKETS = 16384
SLOW = 0.9
"""Quantile of the serving bank's times beyond which a request is slow."""
WINDOW = 512
"""Latest requests of the serving bank that the quantile is of, in each replica."""
WARM = 100
"""Of them, before there is a quantile."""

_Count = Annotated[int, Field(ge=0)]


class SignalCounts(Record):
    """Events of one signal: all of them, by version; those drawn one by one; the buckets of users that had one."""

    serving: _Count = 0
    canary: _Count = 0
    lone_serving: _Count = 0
    lone_canary: _Count = 0
    users: Annotated[str, Field(pattern=r"^[0-9a-f]{1,4096}$")] = "0"

    @property
    def buckets(self) -> int:
        return int(self.users, 16)

    def __add__(self, other: SignalCounts) -> SignalCounts:
        return SignalCounts(
            serving=self.serving + other.serving,
            canary=self.canary + other.canary,
            lone_serving=self.lone_serving + other.lone_serving,
            lone_canary=self.lone_canary + other.lone_canary,
            users=f"{self.buckets | other.buckets:x}",
        )


class Counts(Record):
    """What one replica, or the sum of them, has counted: requests, rated answers and the events of each signal."""

    serving: _Count = 0
    canary: _Count = 0
    rated_serving: _Count = 0
    rated_canary: _Count = 0
    negative: SignalCounts = SignalCounts()
    abstained: SignalCounts = SignalCounts()
    error: SignalCounts = SignalCounts()
    slow: SignalCounts = SignalCounts()

    def of(self, signal: Signal) -> SignalCounts:
        found: SignalCounts = getattr(self, signal)
        return found

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in Counts.model_fields})


@dataclass(frozen=True, slots=True)
class Draw:
    """The outcome of drawing a version for a request. `bucket` is the user's, None for a request drawn by itself."""

    canary: bool
    bucket: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request. `seconds` to the end of its answer are None if it has none."""

    abstained: bool = False
    error: bool = False
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The natural logarithms of the evidence against a canary: of each signal that is evidence, and of all together."""

    signals: Mapping[Signal, float]
    total: float

    @property
    def alarm(self) -> bool:
        return self.total > math.log(1 / ALARM)

    @property
    def worst(self) -> Signal:
        """The signal with the most evidence."""
        return max(self.signals, key=lambda signal: self.signals[signal])


@dataclass(frozen=True)
class Lottery:
    """Who gets the canary: `share` of the users, keys or requests, by their hash with the trial's `id`."""

    id: str
    share: float
    sticky_by: StickyBy
    overlooks: tuple[Signal, ...] = ()
    """Signals that are counted and are no evidence."""

    def draw(self, *, user: str | None, key: str | None, request: str) -> Draw:
        """The version of a request. `request` is an id that the client does not choose. A request without a user, or
        without a key, where those decide is drawn by itself."""
        if self.sticky_by == "user" and user is not None:
            return self.of_user(user)
        if self.sticky_by == "key" and key is not None:
            return Draw(self._hits(f"key\0{key}"))
        return Draw(self._hits(f"request\0{request}"))

    def of_user(self, user: str) -> Draw:
        bucket = int(_uniform(f"user\0{user}") * BUCKETS)
        return Draw(bool(self.canary_buckets >> bucket & 1), bucket)

    @cached_property
    def canary_buckets(self) -> int:
        """The buckets of users that get the canary, as bits."""
        numbers = struct.unpack(f"<{BUCKETS}I", hashlib.shake_256(f"{self.id}\0buckets".encode()).digest(4 * BUCKETS))
        bits = bytearray(BUCKETS // 8)
        for bucket, number in enumerate(numbers):
            if number < self.share * 2**32:
                bits[bucket // 8] |= 1 << bucket % 8
        return int.from_bytes(bits, "little")

    def judge(self, counts: Counts) -> Verdict:
        """The verdict on the sum of all replicas' counts."""
        evidence: dict[Signal, float] = {}
        for signal in SIGNALS:
            if signal in self.overlooks:
                continue
            events = counts.of(signal)
            in_canary = (events.buckets & self.canary_buckets).bit_count()
            in_serving = events.buckets.bit_count() - in_canary
            evidence[signal] = log_evidence(
                events.lone_serving + in_serving, events.lone_canary + in_canary, self.share
            )
        return Verdict(evidence, log_mean_exp(evidence.values()))

    def _hits(self, name: str) -> bool:
        return _uniform(f"{self.id}\0{name}") < self.share


class Trial:
    """One replica's part of a trial: draws versions and counts what becomes of the requests."""

    def __init__(self, lottery: Lottery, *, serving: str, canary: str) -> None:
        """`serving` and `canary` are the versions."""
        self.lottery = lottery
        self.versions = (serving, canary)
        self._requests = [0, 0]
        self._rated = [0, 0]
        self._signals: dict[Signal, _Tally] = {signal: _Tally() for signal in SIGNALS}
        self._times = _Latest()

    def ended(self, draw: Draw, outcome: Outcome) -> None:
        """Count a request whose version was drawn."""
        self._requests[draw.canary] += 1
        if outcome.abstained:
            self._signals["abstained"].add(draw)
        if outcome.error:
            self._signals["error"].add(draw)
        if outcome.seconds is not None:
            if self._times.slow(outcome.seconds):
                self._signals["slow"].add(draw)
            if not draw.canary:
                self._times.add(outcome.seconds)

    def record_feedback(self, version: str, negative: bool, *, user: str | None = None) -> None:
        """Count a user's verdict on an answer of the bank `version`; one that is not in the trial is ignored.

        `user` is the request's, and must be given where the trial is sticky by user: an answer that this user would
        not have been given by the draw came before the trial, or was asked for by version, and is ignored."""
        if version not in self.versions:
            return
        draw = Draw(version == self.versions[True])
        if self.lottery.sticky_by == "user" and user is not None:
            if self.lottery.of_user(user).canary != draw.canary:
                return
            draw = self.lottery.of_user(user)
        self._rated[draw.canary] += 1
        if negative:
            self._signals["negative"].add(draw)

    def counts(self) -> Counts:
        """What was counted so far."""
        return Counts(
            serving=self._requests[False],
            canary=self._requests[True],
            rated_serving=self._rated[False],
            rated_canary=self._rated[True],
            **{signal: tally.counts() for signal, tally in self._signals.items()},
        )


@dataclass
class _Tally:
    events: list[int] = field(default_factory=lambda: [0, 0])
    lone: list[int] = field(default_factory=lambda: [0, 0])
    buckets: int = 0

    def add(self, draw: Draw) -> None:
        self.events[draw.canary] += 1
        if draw.bucket is None:
            self.lone[draw.canary] += 1
        else:
            self.buckets |= 1 << draw.bucket

    def counts(self) -> SignalCounts:
        return SignalCounts(
            serving=self.events[False],
            canary=self.events[True],
            lone_serving=self.lone[False],
            lone_canary=self.lone[True],
            users=f"{self.buckets:x}",
        )


class _Latest:
    """The latest times of the serving bank. Whether a request is slow depends on earlier ones alone."""

    def __init__(self) -> None:
        self._arrived: deque[float] = deque()
        self._ordered: list[float] = []

    def slow(self, seconds: float) -> bool:
        known = len(self._ordered)
        return known >= WARM and seconds > self._ordered[math.ceil(SLOW * known) - 1]

    def add(self, seconds: float) -> None:
        if len(self._arrived) == WINDOW:
            del self._ordered[bisect_left(self._ordered, self._arrived.popleft())]
        self._arrived.append(seconds)
        insort(self._ordered, seconds)


def total(counts: Iterable[Counts]) -> Counts:
    """The sum of the counts of several replicas."""
    return sum(counts, Counts())


def _uniform(name: str) -> float:
    """A number in [0, 1) that is the same wherever it is computed."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest()) / 2**48
