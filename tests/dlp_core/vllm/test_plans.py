"""A request's mixes as they travel to vLLM, and what keys its cache."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from dlp_core.fusion.segments import Segment
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.residency.movement import Pin
from dlp_core.vllm.plans import PLAIN, Spans, Wire, block_keys, salt_of, to_wire

PINS = {name: Pin(slot, f"sha256:{name}") for slot, name in enumerate("abc")}
A, B = Mix.of({"a": 1.0}), Mix.of({"b": 0.5, "c": 0.5})


def test_a_plan_travels_by_value() -> None:
    wire = to_wire([(0, EMPTY_MIX), (4, B)], PINS)
    assert [span[:2] for span in wire] == [[0, []], [4, [[1, 0.5], [2, 0.5]]]]
    assert json.loads(json.dumps(wire)) == wire
    assert wire[0][2] == ""


def test_the_identity_is_of_digests_and_weights_in_any_order_and_not_of_slots() -> None:
    [[_, _, one]] = to_wire([(0, Mix.of({"b": 0.5, "c": 0.5}))], PINS)
    [[_, _, other]] = to_wire([(0, Mix.of({"c": 0.5, "b": 0.5}))], PINS)
    moved = {name: Pin(pin.slot + 3, pin.digest) for name, pin in PINS.items()}
    [[_, _, elsewhere]] = to_wire([(0, B)], moved)
    changed = {name: Pin(pin.slot, pin.digest + "x") for name, pin in PINS.items()}
    [[_, _, replaced]] = to_wire([(0, B)], changed)
    [[_, _, heavier]] = to_wire([(0, Mix.of({"b": 0.5, "c": 0.5000001}))], PINS)
    assert one == other == elsewhere
    assert len({one, replaced, heavier}) == 3


spans = st.lists(st.tuples(st.integers(0, 40), st.sampled_from([EMPTY_MIX, A, B])), min_size=1, max_size=5).map(
    lambda found: [(start if number else 0, mix) for number, (start, mix) in enumerate(sorted(dict(found).items()))]
)


@given(spans, st.integers(0, 60), st.integers(1, 30))
def test_segments_are_the_mixes_of_their_positions(plan: list[tuple[int, Mix]], start: int, length: int) -> None:
    wire = to_wire(plan, PINS)
    segments = Spans(wire).segments(start, length)
    found = [segment.parts for segment in segments for _ in range(segment.length)]
    expected = [next(parts for first, parts, _ in reversed(wire) if first <= at) for at in range(start, start + length)]
    assert found == [tuple((slot, weight) for slot, weight in parts) for parts in expected]


def test_requests_without_a_plan_are_plain() -> None:
    assert PLAIN.segments(7, 3) == [Segment(3, ())]


def test_requests_share_blocks_if_their_mixes_are_the_same_all_along() -> None:
    one, same, other = to_wire([(0, A)], PINS), to_wire([(0, A)], PINS), to_wire([(0, B)], PINS)
    later = to_wire([(0, A), (9, B)], PINS)
    assert salt_of(one, "t", by_block=False) == salt_of(same, "t", by_block=False)
    salts = [salt_of(wire, "t", by_block=False) for wire in (one, other, later)] + [salt_of(one, "u", by_block=False)]
    assert len(set(salts)) == 4


def test_where_blocks_are_keyed_by_their_mixes_only_tenants_are_kept_apart() -> None:
    one, other = to_wire([(0, A)], PINS), to_wire([(0, B)], PINS)
    assert salt_of(one, "t", by_block=True) == salt_of(other, "t", by_block=True)
    assert salt_of(one, "t", by_block=True) != salt_of(one, "u", by_block=True)


@given(spans, spans, st.integers(0, 4))
def test_the_keys_of_a_block_are_equal_only_for_the_same_mixes_at_the_same_places(
    plan: list[tuple[int, Mix]], other: list[tuple[int, Mix]], block: int
) -> None:
    start, end = 16 * block, 16 * block + 16
    wires = [to_wire(found, PINS) for found in (plan, other)]
    same = mixes(wires[0], start, end) == mixes(wires[1], start, end)
    assert (block_keys(wires[0], start, end) == block_keys(wires[1], start, end)) == same


def test_a_block_that_the_plain_backbone_ends_is_not_one_of_the_mix() -> None:
    whole, part = to_wire([(0, A)], PINS), to_wire([(0, A), (9, EMPTY_MIX)], PINS)
    assert block_keys(whole, 0, 16) != block_keys(part, 0, 16)
    assert block_keys(part, 16, 32) == ()


def mixes(wire: Wire, start: int, end: int) -> list[str]:
    return [next(identity for first, _, identity in reversed(wire) if first <= at) for at in range(start, end)]
