"""Adapters of two banks at once: what the engine knows them by, and which of a new bank succeed those of the old."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlp_core.adapter.contents import CONFIG_FILE
from dlp_core.adapter.examination import Verdict
from dlp_core.bank.disk_cache import DiskCache
from dlp_core.bank.manifest import manifest_key
from dlp_core.bank.publish import publish, verify
from dlp_core.bank.reading import load_manifest
from dlp_core.bank.source import BankSource, qualified, successors, unqualified
from dlp_core.errors import UnknownModel
from dlp_core.mix import Mix
from dlp_core.store.memory import MemoryStore
from dlp_core.store.protocol import AdapterStore
from tests.support.banks import publish_bank, write_bank


@pytest.fixture
def store(request: pytest.FixtureRequest) -> AdapterStore:
    return MemoryStore(request.node.name)


def test_what_a_bank_has_instead_of_what_is_resident(store: AdapterStore, tmp_path: Path) -> None:
    one = publish_bank(store, tmp_path, {"sql": 1, "cron": 5}, "one")
    two = publish_bank(store, tmp_path, {"sql": 2, "cron": 5, "dates": 3}, "two")
    (sql,) = qualified(Mix.of({"sql": 1.0}), one).names
    (cron,) = qualified(Mix.of({"cron": 1.0}), one).names
    assert successors([sql, cron], two) == list(qualified(Mix.of({"sql": 1.0}), two).names)
    assert successors([], two) == successors([cron], two) == []


def test_two_banks_are_served_side_by_side(store: AdapterStore, tmp_path: Path) -> None:
    """The same name with other bytes is another adapter, as long as a request of the old bank runs."""
    one = publish_bank(store, tmp_path, {"sql": 1}, "one")
    two = publish_bank(store, tmp_path, {"sql": 2, "cron": 3}, "two")
    source = BankSource(store, DiskCache(tmp_path / "cache", 10**7))
    source.add(one)
    source.add(two)
    mixes = [qualified(Mix.of({"sql": 0.5}), bank) for bank in (one, two)]
    (old,), (new,) = (mix.names for mix in mixes)
    assert old != new
    assert source.digest(old) == one.adapters[0].digest
    factors = [next(iter(source.load(name).modules.values())).a_RD for name in (old, new)]
    assert not factors[0].equal(factors[1])
    with pytest.raises(UnknownModel, match="cron"):
        qualified(Mix.of({"cron": 1.0}), one)
    with pytest.raises(UnknownModel):
        source.load("sql")


def test_a_chat_template_goes_with_its_adapter(store: AdapterStore, tmp_path: Path) -> None:
    folder = write_bank(tmp_path / "bank", ["plain", "spoken"], router=False)
    (folder / "adapters/spoken/tokenizer_config.json").write_text('{"chat_template": "OTHER"}')
    verdicts: list[Verdict] = []
    manifest = publish(store, folder, report=verdicts.append)
    assert ["chat template" in " ".join(verdict.notes) for verdict in verdicts] == [False, True]
    assert [len(entry.files) for entry in manifest.adapters] == [2, 3]
    assert verify(store).problems == ()
    source = BankSource(store, DiskCache(tmp_path / "cache", 10**7))
    source.add(manifest)
    names = [entry.qualified_name for entry in manifest.adapters]
    assert [source.chat_template(name) for name in names] == [None, "OTHER"]
    assert source.load(names[1]).prompting is not None
    (folder / "adapters/spoken/tokenizer_config.json").write_text('{"chat_template": "ANOTHER"}')
    assert publish(store, folder).adapters[1].version != manifest.adapters[1].version


def test_an_engine_gets_of_a_recipe_what_it_gets_of_its_weights(tmp_path: Path) -> None:
    bank = publish_bank(MemoryStore("bank"), tmp_path, {"sql": 1, "cron": 2}, "one")
    explicit = Mix.of({"sql": 0.5, "cron": -0.25})
    recipe = Mix(explicit.adapters, ("blend",))
    assert qualified(recipe, bank) == qualified(explicit, bank)
    assert unqualified(qualified(recipe, bank)).recipes == ("blend",)
    assert unqualified(qualified(recipe, bank)) == explicit


def test_an_activated_adapter_is_listed_with_what_invokes_it(store: AdapterStore, tmp_path: Path) -> None:
    """And nothing is written of the others: manifests without activated adapters are what they were."""
    folder = write_bank(tmp_path / "bank", ["plain", "switched"], router=False)
    config = folder / "adapters/switched" / CONFIG_FILE
    fields = {"alora_invocation_tokens": [5, 6], "task_type": "CAUSAL_LM"}
    config.write_text(json.dumps(json.loads(config.read_text()) | fields))
    manifest = publish(store, folder)
    stored = json.loads(store.get(manifest_key(manifest.version)).data)
    assert [entry.get("alora_invocation_tokens", "nothing") for entry in stored["adapters"]] == ["nothing", [5, 6]]
    assert load_manifest(store) == manifest
    source = BankSource(store, DiskCache(tmp_path / "cache", 10**7))
    source.add(manifest)
    names = [entry.qualified_name for entry in manifest.adapters]
    assert [source.invocation(name) for name in names] == [None, (5, 6)] == [source.load(n).invocation for n in names]
