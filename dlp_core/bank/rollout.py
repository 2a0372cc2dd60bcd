"""What an ingress replica does with the banks in use: picks one for each request, counts what becomes of it, and ends a
canary when its trial says so.

There is no leader. Each replica writes its counts to the store now and then, adds up those of all replicas and applies
the test (dlp_core/fleet/trial.py) to the sums. Whoever sees the alarm first changes the pointer, by a conditional
write; the others find it changed.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import reduce
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from dlp_core.bank.canary import promote, roll_back_canary
from dlp_core.bank.counts import SharedCounts
from dlp_core.bank.manifest import BankManifest, Canary, CanaryEnd, Pointer, Shadow
from dlp_core.errors import AdapterRefused, BankError, Conflict, DLPError, NotFinite, UnknownModel
from dlp_core.fleet.trial import ALARM, SIGNALS, Counts, Draw, Outcome, Signal, Trial, Verdict, total
from dlp_core.store.protocol import AdapterStore
from dlp_core.store.records import Record

if TYPE_CHECKING:
    from dlp_core.bank.follower import BankFollower

log = logging.getLogger("ray.serve")

Role = Literal["serving", "canary", "shadow"]

_Count = Annotated[int, Field(ge=0)]

RATED = 65_536
"""Latest answers whose verdict was counted: a second one of theirs is not."""

_WORDS: dict[Signal, str] = {
    "negative": "negative feedback",
    "abstained": "no adapter chosen",
    "error": "errors",
    "slow": "slow answers",
}


@dataclass(frozen=True, slots=True)
class Picked:
    """The bank that a request gets. `draw` is None unless it was drawn for it: then what becomes of it does not
    count."""

    bank: BankManifest
    role: Role
    draw: Draw | None = None


class ShadowCounts(Record):
    """How often the shadow agrees: about mixes (the same adapters), and about answers (the same text). What was left
    out because the shadow was busy is `skipped`."""

    mixes: _Count = 0
    same_mixes: _Count = 0
    answers: _Count = 0
    same_answers: _Count = 0
    failed: _Count = 0
    skipped: _Count = 0

    def __add__(self, other: ShadowCounts) -> ShadowCounts:
        return ShadowCounts(**{name: getattr(self, name) + getattr(other, name) for name in ShadowCounts.model_fields})


class Rollout:
    """The banks that a follower holds, as requests use them. Use from one event loop; `turn` blocks on threads.

    `replica` names this replica's counts. `on_turn` is called after each turn with the verdict on the canary, None
    without one; `on_end` when this replica has ended a canary.
    """

    def __init__(
        self,
        store: AdapterStore,
        follower: BankFollower,
        *,
        replica: str,
        on_turn: Callable[[Verdict | None], object] = lambda verdict: None,
        on_end: Callable[[CanaryEnd], object] = lambda end: None,
    ) -> None:
        self._store = store
        self._follower = follower
        self._replica = replica
        self._on_turn = on_turn
        self._on_end = on_end
        self._trial: tuple[Canary, Trial, SharedCounts[Counts]] | None = None
        self._sum: Counts | None = None
        self._rated: dict[str, None] = {}
        self._shadow: tuple[Shadow, SharedCounts[ShadowCounts]] | None = None
        self._compared = ShadowCounts()
        self._compared_sum: ShadowCounts | None = None
        self.verdict: Verdict | None = None
        """On the running canary, as of the last turn."""
        self.problem: str | None = None
        """Why the last turn failed: nobody judges a canary then."""

    def pick(self, *, version: str | None, user: str | None, key: str | None, request: str) -> Picked:
        """The bank for a request: the `version` it asks for, else one drawn by its user, its key's name or its own id
        `request`, which the client does not choose.

        Raises UnknownModel for a version that is not in use, and what BankFollower.bank raises.
        """
        serving = self._follower.bank()
        canary, shadow = self._follower.canary, self._follower.shadow
        if version is not None:
            banks: list[tuple[Role, BankManifest]] = [("serving", serving)]
            banks += [("canary", canary.bank)] if canary is not None else []
            banks += [("shadow", shadow.bank)] if shadow is not None else []
            for role, bank in banks:
                if bank.version == version:
                    return Picked(bank, role)
            raise UnknownModel(
                f"bank version {version!r} is not in use; in use: {', '.join(bank.version for _, bank in banks)}",
                param="dlp.bank",
            )
        trial = self._running()
        if trial is None or canary is None:
            return Picked(serving, "serving")
        draw = trial.lottery.draw(user=user, key=key, request=request)
        return Picked(canary.bank, "canary", draw) if draw.canary else Picked(serving, "serving", draw)

    def ended(self, picked: Picked, outcome: Outcome) -> None:
        """Count what became of a request. One of a trial that is over is not counted."""
        trial = self._running()
        if picked.draw is not None and trial is not None and trial.versions[picked.draw.canary] == picked.bank.version:
            trial.ended(picked.draw, outcome)

    def rated(self, request: str, issued: float, *, negative: bool, user: str | None, key: str | None) -> None:
        """Count a verdict on an answer, given once, in the running canary's trial. `request` is the id that `pick` was
        called with, at `issued` in seconds since the epoch: the draw says again which bank answered. What was asked
        before the trial does not count."""
        trial = self._running()
        if trial is None or self._trial is None or issued < self._trial[0].began.timestamp() or request in self._rated:
            return
        self._rated[request] = None
        while len(self._rated) > RATED:
            del self._rated[next(iter(self._rated))]
        draw = trial.lottery.draw(user=user, key=key, request=request)
        trial.record_feedback(trial.versions[draw.canary], negative, user=user)

    def shadow(self) -> Shadow | None:
        """The shadow in use."""
        used = self._follower.shadow
        return None if used is None else used.entry

    def compared(self, version: str, counts: ShadowCounts) -> None:
        """Add what came of a comparison with the shadow `version`."""
        shadow = self._shadowing()
        if shadow is not None and shadow[0].version == version:
            self._compared += counts

    async def follow(self, seconds: float) -> None:
        """A turn every so many seconds. Never returns."""
        while True:
            try:
                await self.turn()
                self._on_turn(self.verdict)
                self.problem = None
            except DLPError as error:
                if error.message != self.problem:
                    log.error("bank %s: canary and shadow are not judged: %s", self._store.uri, error.message)
                self.problem = error.message
            await asyncio.sleep(seconds)

    async def turn(self) -> None:
        """Share the counts, add up those of all replicas, and end the canary if its trial says so. Raises
        StoreUnavailable."""
        await self._turn_of_shadow()
        trial = self._running()
        if trial is None or self._trial is None:
            return
        canary, _, shared = self._trial
        counts = trial.counts()
        sums = await asyncio.to_thread(_share, shared, self._replica, counts)
        if self._running() is not trial:
            return
        self._sum, self.verdict = sums, trial.lottery.judge(sums)
        verdict = self.verdict
        end = None
        promotion = due(canary, sums, datetime.now(UTC))
        try:
            if verdict.alarm:
                reason = describe_alarm(sums, verdict)
                end = await asyncio.to_thread(roll_back_canary, self._store, canary.id, reason)
            elif promotion is not None:
                end = await asyncio.to_thread(promote, self._store, id=canary.id, reason=promotion)
        except Conflict as error:
            log.info("canary %s is not ended yet: %s", canary.version, error.message)  # the next turn tries again
        if end is not None:
            log.warning("bank %s: canary %s %s: %s", self._store.uri, end.version, end.outcome, end.reason)
            self._on_end(end)
            await self._follower.look()

    def report(self) -> dict[str, Any]:
        """What GET /v1/bank says of the rollout: counts and verdict are as of the last turn."""
        pointer = self._follower.pointer
        if pointer is None:
            return {}
        self._running()
        self._shadowing()
        refused = self._follower.refused_beside
        problem = {} if self.problem is None else {"problem": self.problem}
        report = describe(pointer, self._sum, self._compared_sum)
        for role, refusal in refused.items():
            if report[role] is not None:
                report[role] |= {"state": "refused", "reason": refusal.reason}
        for role, used in (("canary", self._follower.canary), ("shadow", self._follower.shadow)):
            if report[role] is not None and used is None and role not in refused:
                report[role] |= {"state": "preparing"}
        return report | problem

    def _running(self) -> Trial | None:
        """The trial of the canary in use."""
        used = self._follower.canary
        if used is None:
            self._trial = self._sum = self.verdict = None
            return None
        if self._trial is None or self._trial[0] != used.entry:
            canary = used.entry
            trial = Trial(canary.lottery, serving=self._follower.bank().version, canary=canary.version)
            self._trial = canary, trial, SharedCounts(self._store, Counts, canary.id)
            self._sum = self.verdict = None
        return self._trial[1]

    def _shadowing(self) -> tuple[Shadow, SharedCounts[ShadowCounts]] | None:
        used = self._follower.shadow
        if used is None:
            self._shadow = self._compared_sum = None
        elif self._shadow is None or self._shadow[0] != used.entry:
            self._shadow = used.entry, SharedCounts(self._store, ShadowCounts, used.entry.id)
            self._compared, self._compared_sum = ShadowCounts(), None
        return self._shadow

    async def _turn_of_shadow(self) -> None:
        shadow = self._shadowing()
        if shadow is not None:
            found = await asyncio.to_thread(_share_compared, shadow[1], self._replica, self._compared)
            self._compared_sum = found


def is_a_failure(error: DLPError) -> bool:
    """Whether an error may be the bank's or the server's fault, and counts in a trial: also an unknown adapter, which
    the other bank may have."""
    return error.status >= 500 or isinstance(error, (AdapterRefused, BankError, NotFinite, UnknownModel))


def due(canary: Canary, counts: Counts, now: datetime) -> str | None:
    """Why a canary without an alarm is to be promoted now; None if it is not."""
    requests, hours = canary.promote_after_requests, canary.promote_after_hours
    if requests is None and hours is None:
        return None
    if requests is not None and counts.canary < requests:
        return None
    if hours is not None and now - canary.began < timedelta(hours=hours):
        return None
    after = [f"{counts.canary:,} requests"] if requests is not None else []
    after += [f"{hours:g} hours"] if hours is not None else []
    return f"no alarm after {' and '.join(after)}"


def describe_alarm(counts: Counts, verdict: Verdict) -> str:
    """Why a canary is rolled back, in a line."""
    events = counts.of(verdict.worst)
    rated = verdict.worst == "negative"
    canary, serving = (counts.rated_canary, counts.rated_serving) if rated else (counts.canary, counts.serving)
    what = "rated answers" if rated else "requests"
    return (
        f"{_WORDS[verdict.worst]}: {events.canary:,} of the canary's {canary:,} {what}, {events.serving:,} of the "
        f"serving bank's {serving:,}"
    )


def describe(pointer: Pointer, counts: Counts | None, compared: ShadowCounts | None) -> dict[str, Any]:
    """The rollout as JSON: what the pointer says, and what was counted."""
    canary, shadow, end = pointer.canary, pointer.shadow, pointer.canary_end
    report: dict[str, Any] = {
        "serving": {"version": pointer.version, "since": pointer.published.isoformat(), "previous": pointer.previous},
        "canary": None,
        "canary_end": None if end is None else end.model_dump(mode="json"),
        "shadow": None,
    }
    if canary is not None:
        lottery = canary.lottery
        sums = counts or Counts()
        report["canary"] = {
            **canary.model_dump(mode="json", exclude={"manifest_sha256"}),
            "state": "alarm" if lottery.judge(sums).alarm else "running",
            "counts": _counts_json(sums),
            "test": _verdict_json(lottery.judge(sums)),
        }
    if shadow is not None:
        report["shadow"] = {
            **shadow.model_dump(mode="json", exclude={"manifest_sha256"}),
            "state": "running",
            "counts": (compared or ShadowCounts()).model_dump(),
        }
    return report


def read_report(store: AdapterStore, pointer: Pointer) -> dict[str, Any]:
    """`describe` from the store alone. Raises StoreUnavailable."""
    canary, shadow = pointer.canary, pointer.shadow
    counts = None if canary is None else total(SharedCounts(store, Counts, canary.id).read())
    compared = None if shadow is None else _total_compared(SharedCounts(store, ShadowCounts, shadow.id).read())
    return describe(pointer, counts, compared)


def _share(shared: SharedCounts[Counts], replica: str, counts: Counts) -> Counts:
    shared.write(replica, counts)
    return total(shared.read())


def _share_compared(shared: SharedCounts[ShadowCounts], replica: str, counts: ShadowCounts) -> ShadowCounts:
    shared.write(replica, counts)
    return _total_compared(shared.read())


def _total_compared(counts: list[ShadowCounts]) -> ShadowCounts:
    return reduce(ShadowCounts.__add__, counts, ShadowCounts())


def _counts_json(counts: Counts) -> dict[str, Any]:
    def side(role: Literal["serving", "canary"]) -> dict[str, int]:
        events: dict[str, int] = {signal: getattr(counts.of(signal), role) for signal in SIGNALS}
        return {"requests": getattr(counts, role), "rated": getattr(counts, f"rated_{role}"), **events}

    return {"serving": side("serving"), "canary": side("canary")}


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    """Evidence as powers of ten, since it may be of any size."""
    ten = math.log(10)
    return {
        "evidence_log10": round(verdict.total / ten, 3),
        "alarm_log10": round(-math.log10(ALARM), 3),
        "signals_log10": {signal: round(value / ten, 3) for signal, value in verdict.signals.items()},
    }
