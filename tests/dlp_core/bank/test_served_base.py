"""A bank knows its base model by the digest of its weights: renamed copies serve, other weights are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dlp_core.bank.importing import start_bank
from dlp_core.bank.manifest import BankManifest
from dlp_core.bank.publish import publish
from dlp_core.bank.pull import pull
from dlp_core.bank.revision import without_adapter
from dlp_core.bank.served_base import ServedBase, check_served
from dlp_core.errors import BankError
from dlp_core.store.opening import open_store
from dlp_core.store.protocol import AdapterStore
from dlp_core.store.weights import weights_digest
from tests.support.banks import write_bank
from tests.support.model_folders import write_model


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return open_store(f"memory://{tmp_path.name}")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny-base")


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    return write_bank(tmp_path / "bank")


def _copy(base: Path, name: str, *, weights: bytes | None = None) -> ServedBase:
    if weights is None:
        return ServedBase.at(shutil.copytree(base, base.with_name(name)))
    return ServedBase.at(write_model(base.parent / "others" / name, weights))


def _published(store: AdapterStore, bank: Path, base: Path) -> BankManifest:
    manifest = publish(store, bank, served=ServedBase.at(base))
    assert manifest.base_model.weights == (weights_digest(base),)
    return manifest


def test_a_renamed_copy_serves_without_a_word(store: AdapterStore, bank: Path, base: Path) -> None:
    manifest = _published(store, bank, base)
    assert check_served(manifest.base_model, _copy(base, "other-7b")) is None


def test_other_weights_are_refused_whatever_they_are_called(store: AdapterStore, bank: Path, base: Path) -> None:
    manifest, other = _published(store, bank, base), _copy(base, "tiny-base", weights=b"x" * 1000)
    with pytest.raises(
        BankError, match=r"'tiny-base' has other weights \(sha256:\w{12}\) than .* 'org/tiny-base'"
    ) as no:
        check_served(manifest.base_model, other)
    assert str(other.digest()) in no.value.message
    assert "\n" not in no.value.message


def test_a_quantised_copy_serves_with_a_remark(store: AdapterStore, bank: Path, base: Path) -> None:
    quantised = _copy(base, "tiny-base-int8", weights=b"x" * 1000)
    manifest = _published(store, bank, base)
    assert "another form of that model" in str(check_served(manifest.base_model, quantised))
    (bank / "adapters" / "alpha" / "description.txt").write_text("changed\n")
    assert publish(store, bank, served=quantised).base_model == manifest.base_model, "the model's own stay recorded"


def test_a_copy_that_serves_as_well_is_listed(store: AdapterStore, bank: Path, base: Path) -> None:
    other = _copy(base, "tiny-base", weights=b"x" * 1000)
    listed = [weights_digest(base), other.digest()]
    settings = json.loads((bank / "bank.json").read_text()) | {"base_model_weights": listed}
    (bank / "bank.json").write_text(json.dumps(settings))
    manifest = publish(store, bank, served=other)
    assert manifest.base_model.weights == tuple(listed)
    assert check_served(manifest.base_model, ServedBase.at(base)) is None


def test_a_bank_folder_of_other_weights_is_not_published(store: AdapterStore, bank: Path, base: Path) -> None:
    settings = json.loads((bank / "bank.json").read_text()) | {"base_model_weights": [f"sha256:{'0' * 64}"]}
    (bank / "bank.json").write_text(json.dumps(settings))
    with pytest.raises(BankError, match=r'add "sha256:.*" to base_model_weights in bank\.json'):
        publish(store, bank, served=ServedBase.at(base))
    assert not list(store.list())


def test_what_is_recorded_stays_with_the_bank(store: AdapterStore, bank: Path, base: Path, tmp_path: Path) -> None:
    manifest = _published(store, bank, base)
    assert publish(store, bank).version == manifest.version, "without the model, nothing changes"
    pull(store, tmp_path / "pulled")
    assert publish(store, tmp_path / "pulled").version == manifest.version
    assert without_adapter(store, "alpha").base_model == manifest.base_model


def test_where_nothing_is_recorded_the_name_decides(store: AdapterStore, bank: Path, base: Path) -> None:
    manifest, other = publish(store, bank), _copy(base, "other-7b")
    assert manifest.base_model.weights == ()
    asked = other._replace(digest=lambda: pytest.fail("the weights were read for nothing"))
    with pytest.raises(BankError, match="'org/tiny-base', and 'other-7b' is another by its name"):
        check_served(manifest.base_model, asked)
    assert "aliases" in str(check_served(manifest.base_model, asked, strict=False))
    assert check_served(manifest.base_model, asked._replace(name="Tiny-Base")) is None


def test_nothing_is_recorded_of_a_model_of_another_name(store: AdapterStore, bank: Path, base: Path) -> None:
    assert publish(store, bank, served=_copy(base, "other-7b")).base_model.weights == ()


def test_a_digest_that_nobody_knows_leaves_it_to_the_name(store: AdapterStore, bank: Path, base: Path) -> None:
    manifest, unknown = _published(store, bank, base), ServedBase("tiny-base", lambda: None)
    assert check_served(manifest.base_model, unknown) is None
    with pytest.raises(BankError, match="another by its name"):
        check_served(manifest.base_model, unknown._replace(name="other-7b"))


def test_a_new_bank_folder_records_the_weights(tmp_path: Path, base: Path) -> None:
    start_bank(tmp_path / "new", "tiny-base", weights=weights_digest(base))
    assert json.loads((tmp_path / "new" / "bank.json").read_text()) == {
        "base_model": "tiny-base",
        "base_model_weights": [weights_digest(base)],
    }
