"""A published bank comes back to a folder, and that folder is the same bank."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlp_core.bank.publish import publish
from dlp_core.bank.pull import pull
from dlp_core.bank.revision import with_adapter
from dlp_core.errors import DigestMismatch, InvalidRequest, NotFound
from dlp_core.store.opening import open_store
from tests.support.banks import ADAPTERS, write_adapter, write_bank


def bank_of_everything(folder: Path) -> Path:
    """Other names of the base model, a description, an adapter that nobody is routed to, one with its own template."""
    write_bank(folder, ADAPTERS)
    write_adapter(folder / "adapters" / "named", seed=7)
    (folder / "adapters" / "alpha" / "description.txt").write_text("Écrit des vers.\n", "utf-8")
    (folder / "adapters" / "beta" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    settings = json.loads((folder / "bank.json").read_text()) | {"aliases": ["other/name"], "unrouted": ["named"]}
    (folder / "bank.json").write_text(json.dumps(settings))
    return folder


def test_to_publish_what_was_pulled_changes_nothing(tmp_path: Path) -> None:
    store = open_store(f"memory://{tmp_path.name}")
    manifest = publish(store, bank_of_everything(tmp_path / "bank"))
    assert pull(store, tmp_path / "back") == manifest
    assert publish(store, tmp_path / "back") == manifest
    elsewhere = publish(open_store(str(tmp_path / "elsewhere")), tmp_path / "back")
    assert (elsewhere.version, elsewhere.digest) == (manifest.version, manifest.digest)
    assert elsewhere.adapters == manifest.adapters, "descriptions and routing too, which no digest covers"
    assert elsewhere.base_model == manifest.base_model


def test_an_adapter_that_was_added_by_name_is_not_lost(tmp_path: Path) -> None:
    store = open_store(f"memory://{tmp_path.name}")
    publish(store, write_bank(tmp_path / "bank"))
    added = with_adapter(store, "added", write_adapter(tmp_path / "added", seed=5))
    pull(store, tmp_path / "back")
    assert publish(store, tmp_path / "back").version == added.version


def test_an_earlier_version(tmp_path: Path) -> None:
    store = open_store(f"memory://{tmp_path.name}")
    first = publish(store, write_bank(tmp_path / "one", seed=1))
    publish(store, write_bank(tmp_path / "two", seed=2))
    assert pull(store, tmp_path / "back", version=first.version) == first


def test_a_folder_with_anything_in_it_is_left_alone(tmp_path: Path) -> None:
    store = open_store(f"memory://{tmp_path.name}")
    publish(store, write_bank(tmp_path / "bank"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    for folder in (tmp_path / "mine", tmp_path / "mine" / "notes"):
        with pytest.raises(InvalidRequest, match="is not empty"):
            pull(store, folder)
    assert (tmp_path / "mine" / "notes").read_text() == "mine"


def test_what_does_not_arrive_as_published_leaves_no_folder(tmp_path: Path) -> None:
    store = open_store(f"memory://{tmp_path.name}")
    manifest = publish(store, write_bank(tmp_path / "bank"))
    key, file = manifest.objects()[-1]
    good = store.get(key).data
    store.put(key, bytes(file.size))
    with pytest.raises(DigestMismatch):
        pull(store, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    store.put(key, good)
    assert pull(store, tmp_path / "back") == manifest, "it goes on where it was"


def test_nothing_published(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        pull(open_store(f"memory://{tmp_path.name}"), tmp_path / "back")
