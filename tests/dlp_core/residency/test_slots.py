"""Slot bookkeeping: pins, eviction, order. Pure Python, so every case is cheap."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dlp_core.errors import InvalidRequest
from dlp_core.residency.slots import Claim, Load, Slots, SlotState


def take(slots: Slots, *keys: str) -> Claim:
    """A request whose loads finish at once."""
    claim, loads = slots.request(dict.fromkeys(keys, 1))
    for load in loads:
        slots.loaded(load.key)
    return claim


def test_an_absent_adapter_is_loaded_once_for_all_claims() -> None:
    slots = Slots(2)
    first, loads = slots.request(dict.fromkeys(["a"], 1))
    second, again = slots.request(dict.fromkeys(["a"], 1))
    assert loads == [Load(0, "a")]
    assert again == []
    assert first.granted
    assert second.granted
    assert slots.state("a") is SlotState.LOADING
    slots.loaded("a")
    assert slots.state("a") is SlotState.READY
    assert first.slots == second.slots == {"a": 0}
    assert slots.pinned == 2


def test_the_least_recently_used_unpinned_adapter_is_evicted() -> None:
    slots = Slots(2)
    for key in ("a", "b", "a"):
        slots.release(take(slots, key))
    take(slots, "c")
    assert slots.state("b") is None
    assert sorted(slots.ready) == ["a", "c"]


def test_a_pinned_adapter_is_never_evicted_and_the_newcomer_waits() -> None:
    slots = Slots(1)
    held = take(slots, "a")
    claim, loads = slots.request(dict.fromkeys(["b"], 1))
    assert not claim.granted
    assert loads == []
    assert slots.waiting == 1
    assert slots.release(held) == [Load(0, "b")]
    assert claim.granted
    assert slots.state("a") is None


def test_a_loading_adapter_is_not_evicted_even_when_no_claim_holds_it() -> None:
    slots = Slots(1)
    claim, _ = slots.request(dict.fromkeys(["a"], 1))
    slots.release(claim)
    waiting, loads = slots.request(dict.fromkeys(["b"], 1))
    assert not waiting.granted
    assert loads == []
    assert slots.loaded("a") == [Load(0, "b")]
    assert waiting.granted


def test_a_set_is_granted_all_at_once_or_not_at_all() -> None:
    slots = Slots(2)
    held = take(slots, "a")
    pair, loads = slots.request(dict.fromkeys(["b", "c"], 1))
    assert not pair.granted
    assert loads == []
    assert slots.pinned == 1, "a waiting set must not hold the slot that is free"
    assert len(slots.release(held)) == 2
    assert pair.granted


def test_demand_counts_each_adapter_once_including_waiting_claims() -> None:
    slots = Slots(4)
    assert slots.demand() == 0
    claims = [take(slots, "a"), take(slots, "a", "b"), take(slots, "c", "d")]
    assert slots.demand() == 1
    waiting, _ = slots.request(dict.fromkeys(["a", "e", "f"], 1))
    assert slots.demand() == 6 / 4
    assert slots.demand(excluding=["a"]) == 5 / 3
    for claim in [*claims, waiting]:
        slots.release(claim)
    assert slots.demand() == 0, "unused adapters are no demand"


def test_demand_is_in_bytes_if_they_are_scarcer_than_slots() -> None:
    slots = Slots(4, max_bytes=10)
    slots.request({"a": 8})
    assert slots.demand() == 0.8
    slots.request({"b": 8})
    assert slots.demand() == 1.6


def test_a_later_request_does_not_overtake_a_waiting_one() -> None:
    slots = Slots(2)
    held = take(slots, "a")
    pair, _ = slots.request(dict.fromkeys(["b", "c"], 1))
    late, loads = slots.request(dict.fromkeys(["a"], 1))
    assert not late.granted
    assert loads == []
    slots.release(held)
    assert pair.granted
    for key in pair.keys:
        slots.loaded(key)
    slots.release(pair)
    assert late.granted


def test_taking_a_slot_does_not_evict_another_adapter_of_the_same_set() -> None:
    slots = Slots(2)
    slots.release(take(slots, "a"))
    slots.release(take(slots, "b"))
    claim = take(slots, "c", "a")  # a is the oldest, and part of the set
    assert sorted(map(str, claim.slots)) == ["a", "c"]
    assert slots.state("b") is None


def test_a_failed_load_frees_the_slot_and_old_holders_cannot_unpin_the_next_owner() -> None:
    slots = Slots(1)
    failed, _ = slots.request(dict.fromkeys(["a"], 1))
    waiting, _ = slots.request(dict.fromkeys(["b"], 1))
    assert slots.failed("a") == [Load(0, "b")]
    assert waiting.granted
    slots.loaded("b")
    slots.release(failed)
    assert slots.pinned == 1
    again, loads = slots.request(dict.fromkeys(["a"], 1))
    assert not again.granted
    assert loads == []


def test_leaving_the_line_lets_the_next_claim_in() -> None:
    slots = Slots(2)
    take(slots, "a")
    pair, _ = slots.request(dict.fromkeys(["b", "c"], 1))
    single, _ = slots.request(dict.fromkeys(["d"], 1))
    assert slots.release(pair) == [Load(1, "d")]
    assert single.granted


def test_releasing_twice_unpins_once() -> None:
    slots = Slots(1)
    first, second = take(slots, "a"), take(slots, "a")
    slots.release(first)
    slots.release(first)
    assert slots.pinned == 1
    slots.release(second)
    assert slots.pinned == 0


def test_a_set_larger_than_the_device_is_refused_at_once() -> None:
    with pytest.raises(InvalidRequest, match="3 adapters, but this server holds 2"):
        Slots(2).request(dict.fromkeys("abc", 1))


def test_the_empty_set_is_granted_even_when_all_slots_are_pinned() -> None:
    slots = Slots(1)
    take(slots, "a")
    claim, _ = slots.request(dict.fromkeys([], 1))
    assert claim.granted


def test_bytes_bound_the_slots_too() -> None:
    slots = Slots(8, max_bytes=10)
    for key, size in (("a", 4), ("b", 3), ("c", 3)):
        claim, loads = slots.request({key: size})
        slots.loaded(loads[0].key)
        slots.release(claim)
    _, loads = slots.request({"d": 6})
    assert sorted(map(str, slots.ready)) == ["c"], "the two oldest made room"
    assert loads[0].slot in (0, 1)
    assert slots.emptied() == [({0, 1} - {loads[0].slot}).pop()]
    assert slots.emptied() == []
    waiting, loads = slots.request({"e": 5})
    assert not waiting.granted
    with pytest.raises(InvalidRequest, match="11 bytes of adapters, but this server holds 10"):
        slots.request({"x": 5, "y": 6})


SIZES = dict(zip("abcdef", (1, 2, 3, 4, 5, 6), strict=True))
MAX_BYTES = 9


class AnyOrder(RuleBasedStateMachine):
    """Random requests, loads, failures and releases on three slots that hold nine bytes together."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(3, MAX_BYTES)
        self.claims: list[Claim] = []
        self.loading: dict[str, int] = {}
        self.requested: list[Claim] = []

    def begin(self, loads: list[Load]) -> None:
        for load in loads:
            assert load.key not in self.loading
            assert load.slot not in self.loading.values()
            self.loading[str(load.key)] = load.slot

    @rule(
        keys=st.sets(st.sampled_from("abcdef"), max_size=3).filter(lambda keys: sum(map(SIZES.get, keys)) <= MAX_BYTES)
    )
    def request(self, keys: set[str]) -> None:
        claim, loads = self.slots.request({key: SIZES[key] for key in sorted(keys)})
        self.claims.append(claim)
        self.requested.append(claim)
        self.begin(loads)

    @precondition(lambda self: self.loading)
    @rule(data=st.data(), fails=st.booleans())
    def finish_load(self, data: st.DataObject, fails: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.loading)))
        del self.loading[key]
        if fails:
            self.begin(self.slots.failed(key))
        else:
            self.begin(self.slots.loaded(key))

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        self.claims.remove(claim)
        self.begin(self.slots.release(claim))

    @invariant()
    def slots_are_accounted_for(self) -> None:
        granted = [claim for claim in self.claims if claim.granted]
        assert self.slots.pinned <= sum(len(claim.keys) for claim in granted)
        held = [*map(str, self.slots.ready), *self.loading]
        assert len(held) <= 3
        assert sum(SIZES[key] for key in held) <= MAX_BYTES
        in_line = [claim.granted for claim in self.requested if claim in self.claims]
        assert in_line == sorted(in_line, reverse=True), "no claim is granted before an earlier one"
        waiting = [claim for claim in self.requested if claim in self.claims and not claim.granted]
        assert len(waiting) == self.slots.waiting

    def teardown(self) -> None:
        """Whatever happened, once all claims are released nothing is pinned and none waits."""
        while self.loading:
            key = next(iter(self.loading))
            del self.loading[key]
            self.begin(self.slots.loaded(key))
        while self.claims:
            claim = next((t for t in self.claims if t.granted), None)
            assert claim is not None, "a claim waits although no slot is pinned"
            self.claims.remove(claim)
            for load in self.slots.release(claim):
                assert self.slots.loaded(load.key) == []
        assert self.slots.pinned == 0
        assert self.slots.waiting == 0


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
