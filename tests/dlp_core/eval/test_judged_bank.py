"""Banks an evaluation can open: a published bank, one of its versions, a folder, local or in a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlp_core.bank.disk_cache import DiskCache
from dlp_core.bank.publish import publish
from dlp_core.errors import DLPError, NotFound, UnknownModel
from dlp_core.eval.judged_bank import open_bank
from dlp_core.store.opening import open_store
from tests.support.banks import ADAPTERS, upload, write_bank

pytestmark = pytest.mark.model


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache", 10**9)


def test_a_folder_has_the_version_it_is_published_under(tmp_path: Path, cache: DiskCache, s3: str) -> None:
    folder = write_bank(tmp_path / "bank")
    upload(folder, f"{s3}candidate/")
    versions = []
    for location in (str(folder), f"{s3}candidate/"):
        with open_bank(location, cache) as bank:
            assert bank.store is None, "it is not published anywhere"
            assert bank.location == location
            assert bank.router is not None
            assert set(bank.router.labels) == set(ADAPTERS)
            entry = bank.manifest.adapters[0]
            assert bank.source.load(entry.qualified_name).rank == entry.rank
            versions.append(bank.manifest.version)
    assert versions == [publish(open_store(f"{s3}bank/"), folder).version] * 2
    assert not open_store(f"{s3}candidate/").list("banks/"), "nothing was written"


def test_a_published_bank_is_its_current_version_or_the_one_named(tmp_path: Path, cache: DiskCache, s3: str) -> None:
    store = open_store(f"{s3}bank/")
    old, new = (publish(store, write_bank(tmp_path / f"bank{seed}", seed=seed)) for seed in (1, 2))
    for location, manifest in ((f"{s3}bank/", new), (f"{s3}bank/#{old.version}", old)):
        with open_bank(location, cache) as bank:
            assert bank.manifest == manifest
            assert bank.store is not None
            assert bank.store.uri == store.uri
            assert bank.location == f"{s3}bank/"
    with pytest.raises(UnknownModel, match="no bank version 'other'"), open_bank(f"{s3}bank/#other", cache):
        pass


def test_a_missing_bank_and_a_bad_folder_are_named(tmp_path: Path, cache: DiskCache, s3: str) -> None:
    (tmp_path / "empty").mkdir()
    for location in (str(tmp_path / "none"), str(tmp_path / "empty"), f"{s3}none/"):
        with pytest.raises(NotFound, match="no bank is published in"), open_bank(location, cache):
            pass
    bad = write_bank(tmp_path / "bad")
    (bad / "router" / "router.json").write_text("{")
    with pytest.raises(DLPError, match="router"), open_bank(str(bad), cache):
        pass
