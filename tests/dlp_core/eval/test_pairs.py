"""Findings on pairs: when a loss counts, what is listed as allowed, and what holds for a bank."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dlp_core.bank.manifest import BankManifest
from dlp_core.bank.publish import publish
from dlp_core.errors import BankError, InvalidRequest
from dlp_core.eval import pairs
from dlp_core.eval.pairs import MIN_ROWS, Drop, OwnRows, PairFindings, PairFound, spoiled_pairs
from dlp_core.eval.results import BankInfo, SuiteInfo
from dlp_core.store.memory import MemoryStore
from dlp_core.store.protocol import AdapterStore
from dlp_core.together import Pair
from tests.support.banks import write_bank

AB, AC, BC = ("alpha", "beta"), ("alpha", "gamma"), ("beta", "gamma")
NOTHING = Drop.of([1.0] * 8, [1.0] * 8)
LOST = Drop.of([0.0] * 8, [1.0] * 8)


@pytest.fixture
def store() -> AdapterStore:
    return MemoryStore("bank")


@pytest.fixture
def bank(store: AdapterStore, tmp_path: Path) -> BankManifest:
    return publish(store, write_bank(tmp_path / "bank"))


def found(bank: BankManifest, pair: Pair, *, spoiled: bool, rows: int = 8) -> PairFound:
    digests = {adapter.name: adapter.digest for adapter in bank.adapters}
    drop = Drop.of([float(not spoiled)] * rows, [1.0] * rows)
    return PairFound(adapters=pair, digests=(digests[pair[0]], digests[pair[1]]), joined=drop, own={}, spoiled=spoiled)


def findings(bank: BankManifest, *pairs_found: PairFound, days: int = 0) -> PairFindings:
    return PairFindings(
        created=datetime(2026, 11, 27, tzinfo=UTC) + timedelta(days=days),
        suite=SuiteInfo(name="given", digest="0" * 12, rows=8, seed=0),
        bank=BankInfo(version=bank.version, digest=bank.digest, base_model="m", adapters=3, router=None),
        setup="m in float32",
        seconds=1.0,
        max_drop=1.0,
        pairs=list(pairs_found),
    )


def test_a_loss_counts_beyond_what_is_allowed_beyond_noise_and_of_rows_enough() -> None:
    assert LOST.counts(1.0)
    assert (LOST.together, LOST.apart, LOST.difference.mean) == (0, 100, -100)
    assert not LOST.counts(100)
    assert not NOTHING.counts(0)
    assert not Drop.of([0.0] * (MIN_ROWS - 1), [1.0] * (MIN_ROWS - 1)).counts(1.0)
    one_of_eight = Drop.of([0.0, *[1.0] * 7], [1.0] * 8)
    assert one_of_eight.difference.mean == -12.5
    assert not one_of_eight.counts(1.0), "it may be chance"
    assert not Drop.of([0.0] * 8, [*[1.0] * 4, *[0.0] * 4]).counts(1.0), "four prompts can lose"
    both_ways = Drop.of([0.0, 1.0] * 4, [1.0, 0.0] * 4)
    assert (both_ways.together, both_ways.difference.mean) == (50, 0)


@pytest.mark.parametrize("innocent", ["alone", "without_other", "without_own"])
def test_own_rows_are_spoiled_only_by_what_neither_does_without_the_other(innocent: str) -> None:
    drops = dict.fromkeys(("alone", "without_other", "without_own"), LOST)
    assert OwnRows(**drops).spoiled(1.0)
    own = OwnRows(**drops | {innocent: NOTHING})
    assert not own.spoiled(1.0)
    assert (own.least == NOTHING) == (innocent != "alone")


def test_own_rows_that_one_alone_does_not_answer_judge_nothing(bank: BankManifest) -> None:
    failed = Drop.of([1.0] * 8, [0.0] * 8)
    for own, judged in (
        (OwnRows(alone=NOTHING, without_other=NOTHING, without_own=NOTHING), True),
        (OwnRows(alone=NOTHING, without_other=NOTHING, without_own=failed), False),
    ):
        pair = found(bank, AB, spoiled=False).model_copy(update={"joined": None, "own": {"alpha": own}})
        assert pair.judged == judged
        assert findings(bank, pair).allowed(None) == ([AB] if judged else [])


def test_what_is_judged_and_not_spoiled_is_allowed_and_what_was_listed_unjudged_stays(bank: BankManifest) -> None:
    few = findings(
        bank, found(bank, AB, spoiled=False), found(bank, AC, spoiled=True), found(bank, BC, spoiled=False, rows=2)
    )
    assert few.spoiled == [AC]
    assert few.allowed(None) == [AB]
    assert few.allowed([AC, BC]) == [AB, BC]


def test_the_newest_finding_of_the_very_adapters_counts(
    bank: BankManifest, store: AdapterStore, tmp_path: Path
) -> None:
    old = findings(bank, found(bank, AB, spoiled=True), found(bank, BC, spoiled=True))
    new = findings(bank, found(bank, AB, spoiled=False), found(bank, BC, spoiled=False, rows=2), days=1)
    assert spoiled_pairs(bank, [old]) == [AB, BC]
    assert spoiled_pairs(bank, [new, old]) == [BC], "two rows judge nothing"
    listed = bank.model_copy(update={"allowed_together": (AB, AC)})
    assert spoiled_pairs(listed, [old]) == [AB]
    assert spoiled_pairs(publish(store, write_bank(tmp_path / "other", seed=1)), [old]) == []


def test_findings_are_kept_in_the_store(bank: BankManifest, store: AdapterStore) -> None:
    assert pairs.stored(store) == []
    both = [findings(bank, found(bank, AB, spoiled=True), days=day) for day in (0, 1)]
    keys = [pairs.save(store, one) for one in both]
    assert pairs.stored(store) == both[::-1]
    store.put(keys[0], b"{}")
    with pytest.raises(BankError, match="is damaged"):
        pairs.stored(store)


def test_a_file_of_something_else_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text("{}")
    with pytest.raises(InvalidRequest, match="not the findings of `dlp eval pairs`"):
        pairs.read(tmp_path / "pairs.json")
