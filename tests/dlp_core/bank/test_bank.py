"""Publish, read, roll back, verify: what is refused, and what a crash or a rival at any step leaves behind."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlp_core.adapter.examination import Rules, Verdict
from dlp_core.adapter.weights import Adapter
from dlp_core.bank.difference import diff
from dlp_core.bank.disk_cache import DiskCache
from dlp_core.bank.folder import make_manifest
from dlp_core.bank.manifest import POINTER_KEY, AdapterEntry, BankManifest, BaseModelEntry, manifest_key
from dlp_core.bank.publish import publish, rollback, verify
from dlp_core.bank.reading import current, list_versions, load_manifest
from dlp_core.bank.source import BankSource
from dlp_core.errors import (
    AdapterRefused,
    BankError,
    Conflict,
    DigestMismatch,
    InvalidRequest,
    NotFound,
    StoreUnavailable,
    UnknownModel,
)
from dlp_core.store.files import FileEntry, digest_of
from dlp_core.store.opening import open_store
from dlp_core.store.protocol import AdapterStore
from tests.support.banks import ADAPTERS, BASE_ID, Spy, write_adapter, write_bank, write_router
from tests.support.trainers import TRAINER_FILES, hostile_pickle, leave_trainer_files
from tests.support.waiting import HANG_S


@pytest.fixture
def store() -> AdapterStore:
    return open_store(f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bank(tmp_path / "bank")


def test_a_published_bank_serves(store: AdapterStore, folder: Path) -> None:
    manifest = publish(store, folder)

    assert load_manifest(store) == manifest == load_manifest(store, manifest.version)
    assert [adapter.name for adapter in manifest.adapters] == list(ADAPTERS)
    assert manifest.base_model.id == BASE_ID
    assert (manifest.adapters[0].rank, manifest.adapters[0].modules) == (2, ("q_proj",))
    assert manifest.router is not None
    assert manifest.router.labels == tuple(reversed(ADAPTERS)), "labels keep the order of the router's outputs"
    pointer, _ = current(store)
    assert (pointer.version, pointer.previous) == (manifest.version, None)


def test_the_layout_is_the_documented_one(store: AdapterStore, folder: Path) -> None:
    manifest = publish(store, folder)
    assert manifest.router is not None
    expected = {f"banks/{manifest.version}.json", "current.json"}
    for adapter in manifest.adapters:
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            expected.add(f"adapters/{adapter.name}/{adapter.version}/{file}")
    expected |= {f"routers/{manifest.router.version}/{file}" for file in ("router.json", "router.safetensors")}
    assert {info.key for info in store.list()} == expected


def test_the_digest_is_what_sha256sum_says(store: AdapterStore, folder: Path) -> None:
    entry = publish(store, folder).adapters[0]
    shell = subprocess.run(
        "sha256sum * | sha256sum", shell=True, cwd=folder / "adapters" / entry.name, capture_output=True, check=True
    )
    assert entry.digest == "sha256:" + shell.stdout.decode().split()[0]
    assert entry.version == entry.digest[7:19]


def test_publishing_to_a_real_s3_server(s3: str, folder: Path) -> None:
    store = open_store(s3)
    first = publish(store, folder)
    second = publish(store, write_bank(folder, seed=1))
    assert load_manifest(store) == second
    assert verify(store).problems == ()
    assert rollback(store) == first == load_manifest(store)


def test_the_same_bytes_are_not_uploaded_again(store: AdapterStore, folder: Path) -> None:
    publish(store, folder)
    spy = Spy(store)
    publish(spy, write_bank(folder, seed=0))
    assert spy.writes == []

    write_adapter(folder / "adapters" / "beta", seed=99)
    publish(spy, folder)
    assert {key.rpartition("/")[2] for key in spy.writes if key.startswith("adapters/")} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert all("/beta/" in key for key in spy.writes if key.startswith("adapters/"))


def test_a_lost_blob_is_uploaded_again_by_publishing(store: AdapterStore, folder: Path) -> None:
    entry = publish(store, folder).adapters[0]
    store.delete(entry.key("adapter_model.safetensors"))
    publish(store, folder)
    assert verify(store).problems == ()


def test_going_back_by_publishing_the_old_folder(store: AdapterStore, tmp_path: Path) -> None:
    old = publish(store, write_bank(tmp_path / "old"))
    new = publish(store, write_bank(tmp_path / "new", seed=1))
    assert publish(store, tmp_path / "old") == old
    assert (current(store)[0].version, current(store)[0].previous) == (old.version, new.version)


def test_progress_ends_at_the_total(store: AdapterStore, folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    manifest = publish(store, folder, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) == 2 * len(ADAPTERS) + 2
    assert seen[-1] == (manifest.size, manifest.size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_bank_without_a_router(store: AdapterStore, tmp_path: Path) -> None:
    manifest = publish(store, write_bank(tmp_path / "bank", router=False))
    assert manifest.router is None
    assert load_manifest(store) == manifest


# -- a crash at each step ---------------------------------------------------------------------


def test_a_crash_at_any_write_leaves_the_old_bank_serving(store: AdapterStore, tmp_path: Path) -> None:
    old = publish(store, write_bank(tmp_path / "old"))
    new_folder = write_bank(tmp_path / "new", seed=1)
    writes = 2 * len(ADAPTERS) + 2 + 1 + 1  # blobs, router, manifest, pointer; the proof of conditions conflicts

    for survived in range(writes + 1):
        with pytest.raises(StoreUnavailable, match="killed"):
            publish(Spy(store, fail_after=survived), new_folder, version=f"v{survived}")
        assert load_manifest(store) == old, f"after {survived} writes"
        assert verify(store).problems == ()
        for info in [info for info in store.list("adapters/") if info.key not in _keys(old)]:
            store.delete(info.key)
        for info in store.list("routers/"):
            if info.key not in _keys(old):
                store.delete(info.key)

    new = publish(Spy(store), new_folder)
    assert load_manifest(store) == new
    assert verify(store).problems == ()


def test_an_interrupted_publish_resumes(store: AdapterStore, folder: Path) -> None:
    with pytest.raises(StoreUnavailable):
        publish(Spy(store, fail_after=2 * len(ADAPTERS) + 2 + 1), folder)
    with pytest.raises(NotFound, match="dlp bank publish"):
        load_manifest(store)

    spy = Spy(store)
    manifest = publish(spy, folder)
    assert load_manifest(store) == manifest
    assert not [key for key in spy.writes if key.startswith(("adapters/", "routers/"))], "blobs were there already"


def _keys(manifest: BankManifest) -> set[str]:
    return {blob.key(file.path) for blob in manifest.blobs() for file in blob.files}


# -- two publishers ---------------------------------------------------------------------------


def test_of_two_publishers_one_wins_and_the_other_is_told(store: AdapterStore, tmp_path: Path) -> None:
    publish(store, write_bank(tmp_path / "base"))
    folders = [write_bank(tmp_path / f"bank{n}", seed=n + 1) for n in range(4)]
    barrier = threading.Barrier(len(folders))

    def race(folder: Path) -> BankManifest | Conflict:
        def wait_once(done: int, total: int) -> None:
            if done == total:
                barrier.wait(timeout=HANG_S)

        try:
            return publish(store, folder, progress=wait_once)
        except Conflict as error:
            return error

    with ThreadPoolExecutor(len(folders)) as pool:
        results = list(pool.map(race, folders))

    winners = [result for result in results if isinstance(result, BankManifest)]
    assert len(winners) == 1
    assert load_manifest(store) == winners[0]
    assert all("changed by another writer" in r.message for r in results if isinstance(r, Conflict))


def test_a_publisher_whose_answer_got_lost_has_still_won(store: AdapterStore, folder: Path) -> None:
    class LosesTheAnswer(Spy):
        def put(self, key: str, *args: Any, **kwargs: Any) -> str:
            etag = store.put(key, *args, **kwargs)
            if key == POINTER_KEY:
                raise Conflict("the retry met the first attempt")
            return etag

    assert publish(LosesTheAnswer(store), folder) == load_manifest(store)


def test_a_store_that_ignores_conditions_is_refused(store: AdapterStore, tmp_path: Path) -> None:
    class Ignores(Spy):
        def put(self, key: str, body: bytes | Path, **conditions: object) -> str:
            return store.put(key, body)

    old = publish(store, write_bank(tmp_path / "old"))
    with pytest.raises(BankError, match="ignores conditional writes"):
        publish(Ignores(store), write_bank(tmp_path / "new", seed=1))
    assert load_manifest(store) == old


def test_a_version_is_never_given_to_another_content(store: AdapterStore, tmp_path: Path) -> None:
    first = publish(store, write_bank(tmp_path / "a"), version="v1")
    with pytest.raises(Conflict, match="v1"):
        publish(store, write_bank(tmp_path / "b", seed=1), version="v1")
    assert load_manifest(store) == first == publish(store, tmp_path / "a", version="v1")


# -- what is refused at publish -----------------------------------------------------------------


def remove(path: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).unlink()


def write(path: str, data: bytes | str) -> Callable[[Path], None]:
    raw = data if isinstance(data, bytes) else data.encode()
    return lambda folder: [None, (folder / path).write_bytes(raw)][0]


def truncate(path: str) -> Callable[[Path], None]:
    return lambda folder: [None, (folder / path).write_bytes((folder / path).read_bytes()[:-3])][0]


def relabel(*labels: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "router" / "router.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": labels}))

    return damage


def route(*labels: str) -> Callable[[Path], None]:
    """A sound router, but for these adapters."""
    return lambda folder: write_router(folder / "router", labels)


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (remove("bank.json"), BankError, "bank.json"),
        (write("bank.json", "{}"), BankError, "base_model"),
        (write("bank.json", '{"base_model": "b", "basemodel": "x"}'), BankError, "basemodel"),
        (lambda folder: shutil.rmtree(folder / "adapters"), BankError, "no adapters"),
        (lambda folder: write_adapter(folder / "adapters" / "bad name"), InvalidRequest, "bad name"),
        (lambda folder: write_adapter(folder / "adapters" / "auto"), BankError, "labels|auto"),
        (lambda folder: write_adapter(folder / "adapters" / "beta", use_dora=True), AdapterRefused, "use_dora"),
        (truncate("adapters/beta/adapter_model.safetensors"), AdapterRefused, "beta"),
        (remove("adapters/beta/adapter_model.safetensors"), AdapterRefused, "beta"),
        (remove("router/router.json"), BankError, "router"),
        (truncate("router/router.safetensors"), BankError, "train the router again"),
        (write("router/router.json", "[]"), BankError, "not a router"),
        (relabel("alpha", "alpha", "gamma"), BankError, "different adapter names"),
        (relabel("alpha", "beta", "../gamma"), BankError, "gamma"),
        (relabel("alpha", "beta", "gamma", "delta"), BankError, "labels need"),
        (route("alpha", "beta", "delta"), BankError, r"unknown: \['delta'\]"),
    ],
)
def test_a_folder_that_cannot_be_served_is_refused_before_a_byte_is_written(
    store: AdapterStore, folder: Path, damage: Callable[[Path], Any], error: type[Exception], says: str
) -> None:
    damage(folder)
    with pytest.raises(error, match=says):
        publish(store, folder)
    assert store.list() == []


def test_an_adapter_called_auto_is_refused_even_without_a_router(store: AdapterStore, tmp_path: Path) -> None:
    with pytest.raises(BankError, match="auto"):
        publish(store, write_bank(tmp_path / "bank", ["auto"], router=False))


def test_the_caller_may_check_each_adapter(store: AdapterStore, folder: Path) -> None:
    seen: list[str] = []

    def check(adapter: Any) -> None:
        seen.append(adapter.name)
        if adapter.name == "beta":
            raise AdapterRefused("beta does not fit")

    with pytest.raises(AdapterRefused, match="beta does not fit"):
        publish(store, folder, check=check)
    assert seen == ["alpha", "beta"]
    assert store.list() == []


def test_the_first_of_several_bad_adapters_is_named(store: AdapterStore, tmp_path: Path) -> None:
    folder = write_bank(tmp_path / "bank", [f"a{number:02}" for number in range(30)], router=False)
    for number in (7, 9, 20):
        truncate(f"adapters/a{number:02}/adapter_model.safetensors")(folder)
    for _ in range(5):
        with pytest.raises(AdapterRefused, match="'a07'"):
            publish(store, folder)


def test_reading_has_a_progress_of_its_own(store: AdapterStore, folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    publish(store, folder, read=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_what_a_trainer_leaves_is_neither_opened_nor_published(
    store: AdapterStore, folder: Path, tmp_path: Path
) -> None:
    plain = publish(store, folder)
    for place in ("adapters/alpha", "router"):
        leave_trainer_files(folder / place, tmp_path / "proof")
    verdicts: list[Verdict] = []
    spy = Spy(store)
    assert publish(spy, folder, report=verdicts.append) == plain
    assert not [key for key in spy.writes if not key.endswith(".json")]
    assert not (tmp_path / "proof").exists()
    assert [(verdict.name, set(verdict.left_out)) for verdict in verdicts] == [
        ("alpha", set(TRAINER_FILES)),
        ("beta", set()),
        ("gamma", set()),
    ]


def test_pickled_weights_are_refused_with_the_command_that_converts_them(
    store: AdapterStore, folder: Path, tmp_path: Path
) -> None:
    beta = folder / "adapters" / "beta"
    (beta / "adapter_model.safetensors").unlink()
    (beta / "adapter_model.bin").write_bytes(hostile_pickle(tmp_path / "proof"))
    with pytest.raises(AdapterRefused, match=f"'beta'.*run: dlp adapter convert {beta}"):
        publish(store, folder)
    assert store.list() == []
    assert not (tmp_path / "proof").exists()


def test_names_of_base_models_are_judged_by_the_banks_own(store: AdapterStore, folder: Path, tmp_path: Path) -> None:
    names = {"alpha": "other/model-7b", "beta": None, "gamma": "x/house-model"}
    for name, base in names.items():
        write_adapter(folder / "adapters" / name, base_model_name_or_path=base)
    (folder / "bank.json").write_text(json.dumps({"base_model": BASE_ID, "aliases": ["acme/House-Model"]}))
    verdicts: dict[str, Verdict] = {}
    manifest = publish(store, folder, report=lambda verdict: verdicts.update({verdict.name: verdict}))
    assert [len(verdicts[name].warnings) for name in names] == [1, 0, 0]
    assert [len(verdicts[name].notes) for name in names] == [0, 1, 0]
    assert load_manifest(store).base_model.aliases == ("acme/House-Model",)
    with pytest.raises(AdapterRefused, match="'alpha' was trained on 'other/model-7b'"):
        publish(store, folder, rules=Rules(strict_names=True))

    source = BankSource(store, DiskCache(tmp_path / "cache", 10**7))
    source.add(manifest)
    for adapter in manifest.adapters:
        assert source.load(adapter.qualified_name).modules, "what publishing accepts is served"


def test_other_aliases_are_another_bank(store: AdapterStore, folder: Path) -> None:
    plain = publish(store, folder)
    assert "aliases" not in (folder / "bank.json").read_text()
    (folder / "bank.json").write_text(json.dumps({"base_model": BASE_ID, "aliases": ["x"]}))
    assert publish(store, folder).version != plain.version


def test_what_a_check_returns_is_described(store: AdapterStore, folder: Path) -> None:
    def rename(adapter: Adapter) -> Adapter:
        return replace(adapter, modules=dict(zip(["model.layers.0.other"], adapter.modules.values(), strict=True)))

    assert publish(store, folder, check=rename).adapters[0].modules == ("other",)


def test_links_of_a_cached_snapshot_are_followed_on_request_alone(
    store: AdapterStore, folder: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "models--org--alpha"
    (folder / "adapters" / "alpha").rename(tmp_path / "alpha")
    (repository / "snapshots").mkdir(parents=True)
    (tmp_path / "alpha").rename(repository / "blobs")
    snapshot = repository / "snapshots" / "c0ffee"
    snapshot.mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (snapshot / file).symlink_to(Path("../../blobs") / file)
    (folder / "adapters" / "alpha").symlink_to(snapshot)
    with pytest.raises(AdapterRefused, match=r"'alpha'.*leads out of its folder"):
        publish(store, folder)
    assert publish(store, folder, rules=Rules(hub_links=True)).adapters[0].name == "alpha"
    assert verify(store).problems == ()


def test_other_files_stay_at_home(store: AdapterStore, folder: Path) -> None:
    (folder / "adapters" / "alpha" / "README.md").write_text("made by PEFT")
    (folder / "adapters" / ".DS_Store").write_text("")
    (folder / "adapters" / ".git").mkdir()
    publish(store, folder)
    assert not [info.key for info in store.list() if "README" in info.key or ".git" in info.key]


def test_a_file_that_changes_while_it_is_published_is_not_kept(store: AdapterStore, folder: Path) -> None:
    weights = folder / "adapters" / "beta" / "adapter_model.safetensors"

    class StillTraining(Spy):
        def put(self, key: str, body: bytes | Path, **conditions: Any) -> str:
            if isinstance(body, Path) and body == weights:
                write_adapter(weights.parent, seed=77)
            return store.put(key, body, **conditions)

    with pytest.raises(AdapterRefused, match="changed while it was published"):
        publish(StillTraining(store), folder)
    assert not [info.key for info in store.list("adapters/beta/") if info.key.endswith(".safetensors")]
    publish(store, folder)
    assert verify(store).problems == ()


def test_a_store_that_is_down_is_said_so(aws_free: None, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    store = open_store("s3://bucket/bank/")
    for call in (lambda: publish(store, folder), lambda: load_manifest(store), lambda: rollback(store)):
        with pytest.raises(StoreUnavailable, match=r"http://127.0.0.1:9.*does not answer") as error:
            call()
        assert not isinstance(error.value, NotFound)


# -- what is refused at load ------------------------------------------------------------------


def tamper(store: AdapterStore, version: str, change: Callable[[Any], None]) -> None:
    """Rewrites a manifest with every digest in it made right again, as an attacker with write access would."""
    manifest = json.loads(store.get(manifest_key(version)).data)
    change(manifest)
    store.put(manifest_key(version), json.dumps(manifest).encode())


def adapter(manifest: Any) -> Any:
    return manifest["adapters"][1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: adapter(m).update(name="../beta"), "not valid"),
        (lambda m: adapter(m).update(version="../../x"), "not valid"),
        (lambda m: adapter(m)["files"][1].update(path="../../../etc/passwd"), "files must be exactly"),
        (lambda m: adapter(m)["files"][1].update(path="adapter_model.bin"), "files must be exactly"),
        (lambda m: adapter(m)["files"].pop(), "files must be exactly"),
        (lambda m: adapter(m)["files"][1].update(sha256="0" * 64), "digest"),
        (lambda m: adapter(m)["files"][1].update(sha256="x"), "sha256"),
        (lambda m: adapter(m)["files"][1].update(size=-1), "size"),
        (lambda m: adapter(m)["files"][1].update(size="1"), "size"),
        (lambda m: adapter(m).update(digest="sha256:" + "0" * 64), "digest"),
        (lambda m: adapter(m).update(extra=1), "extra"),
        (lambda m: m["adapters"].reverse(), "sorted by name"),
        (lambda m: m["adapters"].append(m["adapters"][-1]), "sorted by name"),
        (lambda m: m["adapters"].clear(), "adapters"),
        (lambda m: m["adapters"].pop(), "labels"),
        (lambda m: m["router"]["files"][0].update(path="/etc/passwd"), "files must be exactly"),
        (lambda m: m["router"].update(version=".."), "not valid"),
        (lambda m: m.update(router=None), "digest"),
        (lambda m: m["base_model"].update(id="another"), "digest"),
        (lambda m: m.update(version="another"), "names version"),
        (lambda m: m.update(format=2), "format"),
    ],
)
def test_a_manifest_that_was_tampered_with_is_refused(
    store: AdapterStore, folder: Path, change: Callable[[Any], None], says: str
) -> None:
    version = publish(store, folder).version
    tamper(store, version, change)
    with pytest.raises(BankError, match=says):
        load_manifest(store, version)
    with pytest.raises(BankError, match=says):
        load_manifest(store)


def test_a_manifest_that_is_consistent_but_not_the_published_one_is_refused(store: AdapterStore, folder: Path) -> None:
    version = publish(store, folder).version
    tamper(store, version, lambda m: m.update(created="2001-01-01T00:00:00Z"))
    with pytest.raises(DigestMismatch, match=version):
        load_manifest(store)


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff\xfe", b'{"version": "../x"}', b"[" * 10_000])
def test_a_damaged_pointer_is_refused(store: AdapterStore, folder: Path, raw: bytes) -> None:
    publish(store, folder)
    store.put(POINTER_KEY, raw)
    for call in (lambda: load_manifest(store), lambda: publish(store, folder), lambda: rollback(store)):
        with pytest.raises(BankError, match=r"current\.json"):
            call()


def test_an_unknown_version_is_named(store: AdapterStore, folder: Path) -> None:
    publish(store, folder)
    with pytest.raises(UnknownModel, match="nope"):
        load_manifest(store, "nope")
    with pytest.raises(InvalidRequest):
        load_manifest(store, "../current")


# -- verify, list, diff, rollback ---------------------------------------------------------------


def test_verify_names_every_file_that_is_not_as_published(store: AdapterStore, folder: Path) -> None:
    manifest = publish(store, folder)
    gone = manifest.adapters[0].key("adapter_config.json")
    short = manifest.adapters[1].key("adapter_model.safetensors")
    other = manifest.adapters[2].key("adapter_model.safetensors")
    store.delete(gone)
    store.put(short, store.get(short).data[:-1])
    store.put(other, bytes(len(store.get(other).data)))

    report = verify(store)

    assert (report.version, report.files, report.size) == (manifest.version, 8, manifest.size)
    assert len(report.problems) == 3
    for key in (gone, short, other):
        assert sum(key in problem for problem in report.problems) == 1


def test_list_is_newest_first_and_marks_what_serves(store: AdapterStore, tmp_path: Path) -> None:
    assert list_versions(store) == []
    first = publish(store, write_bank(tmp_path / "a"), version="a")
    second = publish(store, write_bank(tmp_path / "b", ["one", "two"], seed=1), version="b")
    tamper(store, "a", lambda m: m.update(created="2001-01-01T00:00:00Z"))

    found = list_versions(store)

    assert [(bank.version, bank.adapters, bank.current) for bank in found] == [("b", 2, True), ("a", 3, False)]
    assert [bank.size for bank in found] == [second.size, first.size]


def test_diff(store: AdapterStore, tmp_path: Path) -> None:
    a = publish(store, write_bank(tmp_path / "a"))
    write_bank(tmp_path / "b", ["alpha", "beta", "delta"])
    write_adapter(tmp_path / "b" / "adapters" / "beta", seed=5)
    b = publish(store, tmp_path / "b")
    found = diff(a, b)
    assert (found.added, found.removed, found.changed) == (("delta",), ("gamma",), ("beta",))
    assert (found.router_changed, found.base_changed) == (True, False)
    assert not any([diff(a, a).added, diff(a, a).removed, diff(a, a).changed, diff(a, a).router_changed])


def test_rollback_moves_there_and_back(store: AdapterStore, tmp_path: Path) -> None:
    banks = [publish(store, write_bank(tmp_path / str(n), seed=n)) for n in range(3)]
    assert rollback(store) == banks[1] == load_manifest(store)
    assert rollback(store) == banks[2] == load_manifest(store)
    assert rollback(store, banks[0].version) == banks[0] == load_manifest(store)
    assert current(store)[0].previous == banks[2].version


def test_rollback_refuses_what_could_not_serve(store: AdapterStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        rollback(store)
    old = publish(store, write_bank(tmp_path / "a"))
    with pytest.raises(BankError, match="no bank before"):
        rollback(store)
    new = publish(store, write_bank(tmp_path / "b", seed=1))
    with pytest.raises(UnknownModel):
        rollback(store, "nope")
    store.delete(old.adapters[0].key("adapter_model.safetensors"))
    with pytest.raises(BankError, match=r"alpha/.*safetensors"):
        rollback(store)
    assert load_manifest(store) == new


def test_rollback_and_publish_at_once_is_a_conflict(store: AdapterStore, tmp_path: Path) -> None:
    publish(store, write_bank(tmp_path / "a"))
    publish(store, write_bank(tmp_path / "b", seed=1))

    class Rival(Spy):
        def head(self, key: str) -> Any:
            if not self.calls_done:
                self.calls_done = True
                publish(store, write_bank(tmp_path / "c", seed=2))
            return store.head(key)

    rival = Rival(store)
    rival.calls_done = False
    with pytest.raises(Conflict):
        rollback(rival)
    assert load_manifest(store).digest == publish(store, tmp_path / "c").digest


def test_digest_of_does_not_depend_on_order(store: AdapterStore, folder: Path) -> None:
    entry = publish(store, folder).adapters[0]
    assert digest_of(reversed(entry.files)) == digest_of(entry.files)
    assert hashlib.sha256(store.get(entry.key("adapter_config.json")).data).hexdigest() == entry.files[0].sha256


# -- large banks ------------------------------------------------------------------------------


def large(count: int) -> bytes:
    """A manifest of many adapters."""
    entries = []
    for number in range(count):
        sha256 = hashlib.sha256(str(number).encode()).hexdigest()
        files = tuple(FileEntry(path=path, size=number, sha256=sha256) for path in AdapterEntry.FILES)
        digest = digest_of(files)
        entries.append(
            AdapterEntry(
                name=f"adapter-{number:06}",
                version=digest[7:19],
                files=files,
                digest=digest,
                rank=8,
                modules=("q_proj",),
            )
        )
    base = BaseModelEntry(id=BASE_ID)
    return make_manifest(base, entries, None, version="v1", where="here").model_dump_json().encode()


def seconds(work: Callable[[], object]) -> float:
    """Of this process, the least of three runs."""
    taken = []
    for _ in range(3):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


def test_reading_a_manifest_takes_time_in_proportion_to_its_length() -> None:
    small, big = large(500), large(20_000)
    assert seconds(lambda: BankManifest.model_validate_json(big)) < 40 * 4 * seconds(
        lambda: BankManifest.model_validate_json(small)
    )
