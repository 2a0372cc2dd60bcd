"""Where a text may hold two tasks."""

from __future__ import annotations

import pytest

from dlp_core.router.parts import MAX_CHARACTERS, MAX_SPLITS, splits


@pytest.mark.parametrize("seam", [". ", "? ", "\n", " and ", ", and then ", "; ", " also ", ".\n\nAlso, "])
def test_each_way_to_go_on_is_tried(seam: str) -> None:
    assert ("pay my bill", "book a flight") in [
        (first, second.removeprefix("Also, ")) for first, second in splits(f"pay my bill{seam}book a flight")
    ]


@pytest.mark.parametrize("text", ["", "pay my bill", "pay and go", "what is 3.14", "sand castles", "\n\n"])
def test_what_is_one_task_is_not_split(text: str) -> None:
    assert splits(text) == []


def test_the_number_of_splits_is_bounded() -> None:
    assert len(splits("go there. " * 20)) == MAX_SPLITS
    assert splits("go there now. " * MAX_CHARACTERS) == []


def test_a_list_belongs_to_the_task_it_is_in() -> None:
    choices = "Here is a mauve pen. Is the pen gold?\n(A) yes\n(B) no"
    assert splits(choices) == []
    assert splits(f"{choices}\n\nPay my bill") == [(choices, "Pay my bill")]
