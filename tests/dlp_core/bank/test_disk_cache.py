"""The cache holds only what was checked, downloads once, stays within its bytes, and never evicts what is in use."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dlp_core.bank import disk_cache, seal
from dlp_core.bank.disk_cache import DiskCache
from dlp_core.bank.manifest import AdapterEntry, BankManifest
from dlp_core.bank.publish import publish
from dlp_core.bank.seal import SEAL_FILE
from dlp_core.errors import AdapterMissing, AdapterRefused, AdapterUnavailable, DigestMismatch, StoreUnavailable
from dlp_core.store.folder import FolderStore
from dlp_core.store.lock import FileLock
from tests.support.banks import Spy, write_bank
from tests.support.paths import ROOT
from tests.support.waiting import HANG_S, wait_for

NAMES = tuple("abcdefgh")
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def manifest(store: FolderStore, tmp_path: Path) -> BankManifest:
    return publish(store, write_bank(tmp_path / "bank", NAMES))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def cache_of(root: Path, entries: float, manifest: BankManifest) -> DiskCache:
    """A cache with room for so many adapters."""
    return DiskCache(root, int(entries * manifest.adapters[0].size))


def downloads(spy: Spy) -> list[str]:
    return [key for method, key in spy.calls if method == "download"]


def bytes_on_disk(root: Path) -> int:
    """Without seals. By inode: a download that is renamed while this looks is one file, not two."""
    sizes = {}
    for folder, _, names in os.walk(root):
        for name in set(names) - {SEAL_FILE}:
            with suppress(FileNotFoundError):
                stat = Path(folder, name).stat()
                sizes[stat.st_ino] = stat.st_size
    return sum(sizes.values())


def test_a_leased_folder_holds_the_published_bytes(store: FolderStore, manifest: BankManifest, root: Path) -> None:
    cache, entry = DiskCache(root, 10**6), manifest.adapters[0]
    with cache.lease(store, entry) as folder:
        assert sorted(os.listdir(folder)) == ["adapter_config.json", WEIGHTS, SEAL_FILE]
        for file in entry.files:
            assert (folder / file.path).read_bytes() == store.get(entry.key(file.path)).data
    assert cache.fetch(store, entry) == folder
    assert bytes_on_disk(root) == entry.size


def test_a_router_is_cached_like_an_adapter(store: FolderStore, manifest: BankManifest, root: Path) -> None:
    assert manifest.router is not None
    with DiskCache(root, 10**6).lease(store, manifest.router) as folder:
        assert sorted(os.listdir(folder)) == ["router.json", "router.safetensors", SEAL_FILE]


def test_the_second_lease_and_a_restart_read_the_disk(store: FolderStore, manifest: BankManifest, root: Path) -> None:
    spy, entry = Spy(store), manifest.adapters[0]
    cache = DiskCache(root, 10**6)
    cache.fetch(spy, entry)
    cache.fetch(spy, entry)
    DiskCache(root, 10**6).fetch(spy, entry)
    assert len(downloads(spy)) == 2, "two files, once each"


def test_downloads_are_told_and_entries_counted(store: FolderStore, manifest: BankManifest, root: Path) -> None:
    told: list[tuple[str, float]] = []
    cache = DiskCache(root, 10**6, on_fetch=lambda entry, seconds: told.append((entry.digest, seconds)))
    assert cache.digests() == set()
    for entry in (manifest.adapters[0], manifest.adapters[1], manifest.adapters[0]):
        cache.fetch(store, entry)
    assert [digest for digest, _ in told] == [entry.digest for entry in manifest.adapters[:2]]
    assert all(seconds > 0 for _, seconds in told)
    assert cache.digests() == {entry.digest for entry in manifest.adapters[:2]}


class Slow(Spy):
    """Downloads nothing before `everybody_asked()`."""

    def __init__(self, store: FolderStore, everybody_asked: Callable[[], bool]) -> None:
        super().__init__(store)
        self._everybody_asked = everybody_asked

    def download(self, key: str, *args: Any, **kwargs: Any) -> None:
        wait_for(self._everybody_asked, "other downloads")
        self.calls.append(("download", key))
        self._store.download(key, *args, **kwargs)


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The threads that wait for a download of another thread."""
    threads: list[threading.Thread] = []

    class Joined(Future):  # type: ignore[type-arg]
        def result(self, timeout: float | None = None) -> Any:
            threads.append(threading.current_thread())
            return super().result(timeout)

    monkeypatch.setattr(disk_cache, "Future", Joined)
    return threads


def test_many_threads_download_once(
    store: FolderStore, manifest: BankManifest, root: Path, joined: list[threading.Thread]
) -> None:
    slow, entry = Slow(store, lambda: len(joined) == 15), manifest.adapters[0]
    cache = DiskCache(root, 10**6)

    def read(_: int) -> bytes:
        with cache.lease(slow, entry) as folder:
            return (folder / WEIGHTS).read_bytes()

    with ThreadPoolExecutor(16) as pool:
        found = set(pool.map(read, range(16)))

    assert found == {store.get(entry.key(WEIGHTS)).data}
    assert sorted(downloads(slow)) == sorted(entry.key(file.path) for file in entry.files)


def test_the_files_of_an_entry_are_fetched_together(store: FolderStore, manifest: BankManifest, root: Path) -> None:
    class Together(Spy):
        both = threading.Barrier(2, timeout=HANG_S)

        def download(self, key: str, *args: Any, **kwargs: Any) -> None:
            self.both.wait()
            self._store.download(key, *args, **kwargs)

    with DiskCache(root, 10**6).lease(Together(store), manifest.adapters[0]) as folder:
        assert all((folder / file.path).is_file() for file in manifest.adapters[0].files)


def test_several_caches_on_one_folder_download_once(store: FolderStore, manifest: BankManifest, root: Path) -> None:
    """Two objects share nothing but the file locks, just as two processes do."""
    entry = manifest.adapters[0]
    caches = [DiskCache(root, 10**6) for _ in range(6)]
    slow = Slow(store, lambda: all(cache._filling for cache in caches))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda cache: cache.fetch(slow, entry), caches))
    assert len(downloads(slow)) == 2


def test_a_failed_download_is_told_to_all_who_wait_and_then_forgotten(
    store: FolderStore, manifest: BankManifest, root: Path, joined: list[threading.Thread]
) -> None:
    class Down(FolderStore):
        def download(self, key: str, *args: Any, **kwargs: Any) -> None:
            raise StoreUnavailable(f"{key} is cut off")

    down, entry = Slow(Down(Path(store.uri)), lambda: len(joined) == 7), manifest.adapters[0]
    cache = DiskCache(root, 10**6)

    def fetch(_: int) -> str:
        with pytest.raises(AdapterUnavailable) as error:
            cache.fetch(down, entry)
        assert error.value.retry_after is not None
        return error.value.message

    with ThreadPoolExecutor(8) as pool:
        messages = set(pool.map(fetch, range(8)))

    tried = downloads(down)  # the first failure keeps files that were not begun from being tried at all
    assert 1 <= len(tried) == len(set(tried))
    assert set(tried) <= {entry.key(file.path) for file in entry.files}
    assert all("'a'" in message and "is cut off" in message for message in messages)
    cache.fetch(store, entry)
    assert bytes_on_disk(root) == entry.size


def test_files_that_are_not_in_the_store_are_not_to_be_waited_for(
    store: FolderStore, manifest: BankManifest, root: Path
) -> None:
    cache, entry = DiskCache(root, 10**6), manifest.adapters[0]
    store.delete(entry.key(WEIGHTS))
    with pytest.raises(AdapterMissing) as error:
        cache.fetch(store, entry)
    assert (error.value.status, error.value.retry_after) == (503, None)
    for part in ("'a'", entry.key(WEIGHTS), store.uri, "publish its bank again, or roll back"):
        assert part in error.value.message
    assert bytes_on_disk(root) == 0
    store.put(entry.key(WEIGHTS), root.parent / "bank" / "adapters" / "a" / WEIGHTS)
    cache.fetch(store, entry)


@pytest.mark.parametrize("how", ["truncated", "same size", "deleted", "replaced by a link"])
def test_a_damaged_cached_file_is_noticed_and_fetched_again(
    store: FolderStore, manifest: BankManifest, root: Path, tmp_path: Path, how: str
) -> None:
    cache, entry = DiskCache(root, 10**6), manifest.adapters[0]
    weights = cache.fetch(store, entry) / WEIGHTS
    good = weights.read_bytes()
    if how == "deleted":
        weights.unlink()
    elif how == "replaced by a link":
        weights.unlink()
        (tmp_path / "other").write_bytes(bytes(len(good)))
        weights.symlink_to(tmp_path / "other")
    else:
        weights.chmod(0o644)
        weights.write_bytes(good[:-1] if how == "truncated" else bytes(len(good)))

    with cache.lease(store, entry) as folder:
        assert (folder / WEIGHTS).read_bytes() == good


@pytest.mark.parametrize("lost", [False, True])
def test_files_from_before_the_machine_started_are_checked_again(
    store: FolderStore, manifest: BankManifest, root: Path, monkeypatch: pytest.MonkeyPatch, *, lost: bool
) -> None:
    cache, spy, entry = DiskCache(root, 10**6), Spy(store), manifest.adapters[0]
    weights = cache.fetch(store, entry) / WEIGHTS
    good, times = weights.read_bytes(), weights.stat()
    if lost:  # what a power loss makes of bytes that were never synced: the size and the time are right
        weights.chmod(0o644)
        weights.write_bytes(bytes(len(good)))
        os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    monkeypatch.setattr(seal, "_BOOT", "another")
    for _ in range(2):
        with cache.lease(spy, entry) as folder:
            assert (folder / WEIGHTS).read_bytes() == good
    assert len(downloads(spy)) == (2 if lost else 0), "both files, once"


@pytest.mark.parametrize("bad", [lambda data: data[:-1], lambda data: data + b"x", lambda data: bytes(len(data))])
def test_tampered_bytes_in_the_store_never_reach_the_cache(
    store: FolderStore, manifest: BankManifest, root: Path, bad: Any
) -> None:
    cache, entry = DiskCache(root, 10**6), manifest.adapters[0]
    key = entry.key(WEIGHTS)
    store.put(key, bad(store.get(key).data))
    with pytest.raises(DigestMismatch, match=key):
        cache.fetch(store, entry)
    assert bytes_on_disk(root) == 0


def test_the_least_recently_used_makes_room(store: FolderStore, manifest: BankManifest, root: Path) -> None:
    cache, spy = cache_of(root, 3, manifest), Spy(store)
    a, b, c, d = manifest.adapters[:4]
    for entry in (a, b, c, a, d):
        cache.fetch(spy, entry)
        time.sleep(0.01)  # file times are what says who came last
    spy.calls.clear()
    for entry in (a, c, d):
        cache.fetch(spy, entry)
    assert downloads(spy) == []
    cache.fetch(spy, b)
    assert len(downloads(spy)) == 2


def test_the_bound_holds_at_every_moment(store: FolderStore, manifest: BankManifest, root: Path) -> None:
    cache = cache_of(root, 3.5, manifest)
    limit = int(3.5 * manifest.adapters[0].size)
    most = 0
    refusals: list[str] = []

    class Watching(Spy):
        def download(self, *args: Any, **kwargs: Any) -> None:
            nonlocal most
            store.download(*args, **kwargs)
            with FileLock(root / ".locks" / "room"):  # else files come and go while they are counted
                most = max(most, bytes_on_disk(root))

    def churn(seed: int) -> int:
        fetched = 0
        for number in range(30):
            try:
                with cache.lease(Watching(store), manifest.adapters[(seed * 3 + number) % len(NAMES)]) as folder:
                    fetched += bool((folder / WEIGHTS).stat().st_size)
            except AdapterUnavailable as error:  # 4 threads may hold more than 3 adapters
                refusals.append(error.message)
        return fetched

    with ThreadPoolExecutor(4) as pool:
        fetched = sum(pool.map(churn, range(4)))
    assert fetched > 60
    assert [refusal for refusal in refusals if "full of adapters in use" not in refusal] == []
    assert 0 < most <= limit
    assert not list((root / ".partial").iterdir())


def test_what_is_leased_is_never_evicted(store: FolderStore, manifest: BankManifest, root: Path) -> None:
    cache = cache_of(root, 2, manifest)
    a, b, c, d = manifest.adapters[:4]
    with cache.lease(store, a) as folder_a:
        for entry in (b, c, d, b, c):
            cache.fetch(store, entry)
            assert (folder_a / WEIGHTS).exists()
        with cache.lease(store, c), pytest.raises(AdapterUnavailable, match="full of adapters in use"):
            cache.fetch(store, d)
        cache.fetch(store, d)
    cache.fetch(store, b)
    cache.fetch(store, c)
    assert not folder_a.exists(), "once it is released, it is one entry like any other"


def test_another_process_respects_a_lease(store: FolderStore, manifest: BankManifest, root: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from dlp_core.bank.reading import load_manifest; from dlp_core.bank.disk_cache import DiskCache\n"
        "from dlp_core.store.opening import open_store\n"
        "store = open_store(sys.argv[1]); cache = DiskCache(Path(sys.argv[2]), int(sys.argv[3]))\n"
        "for entry in load_manifest(store).adapters[1:]: cache.fetch(store, entry)"
    )
    cache, entry = cache_of(root, 2, manifest), manifest.adapters[0]
    with cache.lease(store, entry) as folder:
        command = [sys.executable, "-c", code, store.uri, str(root), str(2 * entry.size)]
        subprocess.run(command, check=True, cwd=ROOT)
        assert (folder / WEIGHTS).exists()
        assert bytes_on_disk(root) <= 2 * entry.size


def test_an_adapter_larger_than_the_cache_is_refused(store: FolderStore, manifest: BankManifest, root: Path) -> None:
    entry = manifest.adapters[0]
    with pytest.raises(AdapterRefused) as error:
        DiskCache(root, entry.size - 1).fetch(store, entry)
    for part in ("'a'", str(entry.size), str(entry.size - 1), "max_bytes"):
        assert part in error.value.message
    DiskCache(root, entry.size).fetch(store, entry)


def test_what_a_killed_downloader_left_is_swept_away(store: FolderStore, manifest: BankManifest, root: Path) -> None:
    cache = cache_of(root, 1, manifest)
    entry = manifest.adapters[0]
    left = root / ".partial" / f"{entry.size}-{uuid.uuid4().hex}"
    left.mkdir(parents=True)
    (left / WEIGHTS).write_bytes(b"half of it")
    cache.fetch(store, entry)
    assert not left.exists()


def test_other_peoples_files_are_left_alone(store: FolderStore, manifest: BankManifest, root: Path) -> None:
    (root / "photos").mkdir(parents=True)
    (root / "photos" / "cat.jpg").write_bytes(bytes(10_000))
    cache = cache_of(root, 1, manifest)
    for entry in manifest.adapters:
        cache.fetch(store, entry)
    assert (root / "photos" / "cat.jpg").exists()


def test_a_folder_that_cannot_be_written_is_said_so(store: FolderStore, manifest: BankManifest, root: Path) -> None:
    root.write_bytes(b"a file")
    with pytest.raises(AdapterUnavailable, match=str(root)):
        DiskCache(root, 10**6).fetch(store, manifest.adapters[0])


def test_an_error_inside_a_lease_is_the_readers_own(store: FolderStore, manifest: BankManifest, root: Path) -> None:
    cache, entry = DiskCache(root, 10**6), manifest.adapters[0]
    with pytest.raises(FileNotFoundError), cache.lease(store, entry) as folder:
        (folder / "no such file").read_bytes()
    with cache.lease(store, entry):
        pass


def test_the_same_bytes_under_two_names_are_one_entry(store: FolderStore, tmp_path: Path, root: Path) -> None:
    folder = write_bank(tmp_path / "twins", ["one"], router=False)
    shutil.copytree(folder / "adapters" / "one", folder / "adapters" / "two")
    one, two = publish(store, folder).adapters
    assert isinstance(one, AdapterEntry)
    cache = DiskCache(root, 10**6)
    assert cache.fetch(store, one) == cache.fetch(store, two)
    assert bytes_on_disk(root) == one.size
