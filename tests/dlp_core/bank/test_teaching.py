"""What a bank's router learns of adapters without rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlp_core.bank.teaching import plan_teaching
from dlp_core.errors import BankError, InvalidRequest
from tests.dlp_core.router.test_growth import smaller
from tests.support.banks import write_bank


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = write_bank(tmp_path / "bank", ["word_sorting", "described", "silent"], router=False)
    (folder / "adapters" / "described" / "description.txt").write_text("Converts amounts between currencies.\n")
    return folder


def test_described_adapters_are_routed_and_the_others_named(folder: Path) -> None:
    teaching = plan_teaching(folder, ["word_sorting"])
    assert (list(teaching.described), teaching.by_name) == (["described"], ("silent",))
    router = teaching.complete(smaller())
    assert set(router.labels) == {*smaller().labels, "described"}
    assert router.route(["Convert this amount to another currency"])[0].best == "described"


def test_rows_of_no_adapter_are_a_mistake(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"no adapters or recipes of .*bank: sums"):
        plan_teaching(folder, ["word_sorting", "sums"])


def test_only_a_bank_folder_will_do(tmp_path: Path) -> None:
    with pytest.raises(BankError, match=r"bank\.json"):
        plan_teaching(tmp_path, ["a"])
