"""Wordings behind rows, and rows with other values."""

from __future__ import annotations

from random import Random

import pytest

from dlp_core.router.slots import Slots, few_wordings, wording_warnings

NAMES = "Ann Bob Cem Dia Eve Fay Gus Hal Ida Jon Kim Leo".split()
ROWS = {
    "refund": [f"Please refund {name} for the lamp." for name in NAMES]
    + [f"{name} wants the money back!" for name in NAMES],
    "people": [
        "where is my parcel",
        "has it been sent yet?",
        "tracking says nothing since monday",
        "it should have come last week",
        "when will the postman ring",
        "my order is late, why",
        "can you find out where the box is",
        "no news of the shipment",
        "is it stuck at customs",
        "give me the tracking number",
        "did you send it to the old address",
        "the courier never came",
        "still waiting for delivery",
        "they say it was delivered but no",
        "which depot has my package",
        "estimated arrival please",
    ],
}


def test_few_wordings_are_named_and_people_are_not() -> None:
    assert few_wordings(ROWS) == {"refund": 2}
    (warning,) = wording_warnings(ROWS)
    assert "'refund'" in warning
    assert "24 rows" in warning
    assert "2 wordings" in warning


@pytest.mark.parametrize("count", [1, 3, 10])
def test_few_values_are_values_too(count: int) -> None:
    rows = {"refund": [f"Please refund {NAMES[n % count]} for the lamp in {NAMES[n % 7]}." for n in range(40)]}
    assert few_wordings(rows) == {"refund": 1}


def test_other_values_keep_the_frame_and_the_capitals() -> None:
    swapped = Slots(ROWS).swap("Please refund Ann for the lamp.", "refund", ["zora"], Random(0))
    assert swapped == "Please refund Zora for the lamp."
    assert Slots(ROWS).swap("ZOE wants the money back!", "refund", ["ali"], Random(0)) == "ALI wants the money back!"


def test_numbers_stay() -> None:
    text = "Please refund 42 for the lamp."
    assert Slots(ROWS).swap(text, "refund", ["zora"], Random(0)) == text


def test_two_values_at_most_are_replaced() -> None:
    swapped = Slots(ROWS).swap("Ann Bob Cem Dia Eve", "refund", ["zora"], Random(0))
    assert swapped.count("Zora") == 2


def test_a_task_without_rows_has_no_frame() -> None:
    assert Slots({"empty": []}).swap("two words", "empty", ["x"], Random(0)) == "x x"
