"""A second bank beside the current one, in the pointer: started, stopped, promoted, rolled back, by many writers."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import pytest

from dlp_core.bank import pointer
from dlp_core.bank.canary import (
    promote,
    roll_back_canary,
    start_canary,
    start_shadow,
    stop_canary,
    stop_shadow,
)
from dlp_core.bank.manifest import Pointer
from dlp_core.bank.publish import publish, rollback
from dlp_core.bank.reading import current, list_versions
from dlp_core.bank.retention import collect
from dlp_core.bank.revision import without_adapter
from dlp_core.errors import BankError, Conflict, InvalidRequest, UnknownModel
from dlp_core.store.opening import open_store
from dlp_core.store.protocol import AdapterStore
from tests.support.banks import Spy, write_bank
from tests.support.stores import KINDS, empty_place

VERSIONS = ("one", "two", "three")


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> AdapterStore:
    return fill(open_store(empty_place(request.param, request, tmp_path)), tmp_path)


@pytest.fixture
def memory(tmp_path: Path) -> AdapterStore:
    return fill(open_store(f"memory://{uuid.uuid4().hex}"), tmp_path)


def fill(store: AdapterStore, folder: Path) -> AdapterStore:
    """One serves, zero did before; two and three are staged."""
    for seed, version in enumerate(("zero", "one")):
        publish(store, write_bank(folder / version, seed=seed), version=version)
    for seed, version in enumerate(VERSIONS[1:], 2):
        publish(store, write_bank(folder / version, seed=seed), version=version, stage=True)
    return store


def now(store: AdapterStore) -> Pointer:
    return current(store)[0]


def test_a_canary_comes_and_goes(store: AdapterStore) -> None:
    before = now(store)
    canary = start_canary(store, "two", share=0.2, sticky_by="key", promote_after_requests=500)
    assert now(store) == before.model_copy(update={"canary": canary})
    assert (canary.version, canary.share, canary.sticky_by, canary.promote_after_requests) == ("two", 0.2, "key", 500)
    end = stop_canary(store)
    assert (end.id, end.version, end.outcome) == (canary.id, "two", "stopped")
    assert now(store) == before.model_copy(update={"canary_end": end})
    with pytest.raises(InvalidRequest, match="no canary runs"):
        stop_canary(store)


def test_a_promoted_canary_serves_and_can_be_rolled_back(store: AdapterStore) -> None:
    canary = start_canary(store, "two")
    promote(store)
    after = now(store)
    assert (after.version, after.previous, after.canary) == ("two", "one", None)
    assert after.manifest_sha256 == canary.manifest_sha256
    assert after.canary_end is not None
    assert after.canary_end.outcome == "promoted"
    assert rollback(store).version == "one"
    with pytest.raises(InvalidRequest, match="no canary runs"):
        promote(store)


def test_an_alarm_ends_the_trial_it_is_about_and_no_other(memory: AdapterStore) -> None:
    old = start_canary(memory, "two")
    new = start_canary(memory, "two", share=0.5)
    assert new.id != old.id
    assert roll_back_canary(memory, old.id, "errors") is None
    assert promote(memory, id=old.id) is None
    assert now(memory).canary == new
    end = roll_back_canary(memory, new.id, "errors: 9 of 10")
    assert end is not None
    assert (end.outcome, end.reason) == ("rolled_back", "errors: 9 of 10")
    assert (now(memory).version, now(memory).canary_end) == ("one", end)


def test_a_rollback_undoes_the_canary_first(memory: AdapterStore) -> None:
    start_canary(memory, "two")
    assert rollback(memory).version == "one"
    assert (now(memory).version, now(memory).canary) == ("one", None)
    assert rollback(memory).version == "zero"
    start_canary(memory, "two")
    assert rollback(memory, "one").version == "one"
    assert (now(memory).version, now(memory).canary) == ("one", None)
    start_canary(memory, "two")
    assert rollback(memory, "one").version == "one"
    assert now(memory).canary is None


def test_nothing_is_published_over_a_canary(memory: AdapterStore, tmp_path: Path) -> None:
    start_canary(memory, "two")
    spy = Spy(memory)
    for change in (
        lambda: publish(spy, write_bank(tmp_path / "new", seed=9)),
        lambda: without_adapter(spy, "alpha"),
        lambda: start_canary(spy, "three"),
    ):
        with pytest.raises(Conflict, match=r"bank two is .*canary.*`dlp bank promote`, or `dlp bank canary --stop`"):
            change()
    assert spy.writes == []
    publish(memory, tmp_path / "new", version="four", stage=True)
    assert now(memory).canary is not None
    stop_canary(memory)
    assert publish(memory, tmp_path / "new", version="four").version == now(memory).version == "four"


def test_a_staged_bank_is_stored_and_does_not_serve(store: AdapterStore, tmp_path: Path) -> None:
    assert now(store).version == "one"
    assert {bank.version for bank in list_versions(store)} == {"zero", *VERSIONS}
    with pytest.raises(BankError, match="without --stage first"):
        publish(open_store(f"memory://{uuid.uuid4().hex}"), tmp_path / "two", stage=True)


def test_a_stage_that_a_collection_overtook_starts_again(memory: AdapterStore, tmp_path: Path) -> None:
    """It found files in place, which are deleted before it ends: it must notice, though it changes no pointer."""
    folder = write_bank(tmp_path / "late", seed=2)  # the files of two
    collected: list[str] = []
    first = Lock()

    class Overtaken(Spy):
        def __getattr__(self, method: str) -> Callable[..., object]:
            call = super().__getattr__(method)

            def then_collect(key: str = "", *args: object, **kwargs: object) -> object:
                found = call(key, *args, **kwargs)
                if first.acquire(blocking=False):
                    collected.extend(collect(memory, keep=0).keys)
                return found

            return then_collect if method == "head" else call

    publish(Overtaken(memory), folder, version="late", stage=True)
    assert any(key.startswith("adapters/") for key in collected)
    start_canary(memory, "late")  # looks every file up


def test_what_cannot_be_a_canary_is_one_line(memory: AdapterStore) -> None:
    for share in (0.0, 1.0, -1.0, 5.0, float("nan")):
        with pytest.raises(InvalidRequest, match="lies between 0 and 1"):
            start_canary(memory, "two", share=share)
    for start in (start_canary, start_shadow):
        with pytest.raises(InvalidRequest, match="bank one is the current one"):
            start(memory, "one")
        with pytest.raises(UnknownModel, match="no bank version 'never'"):
            start(memory, "never")
        memory.delete(next(info.key for info in memory.list("adapters/alpha/") if _only_of(memory, "three", info.key)))
        with pytest.raises(BankError, match="files are missing"):
            start(memory, "three")
    assert now(memory).canary is now(memory).shadow is None


def _only_of(store: AdapterStore, version: str, key: str) -> bool:
    manifests = {info.key: store.get(info.key).data.decode() for info in store.list("banks/")}
    folder = key.split("/")[2]
    return [name for name, text in manifests.items() if folder in text] == [f"banks/{version}.json"]


def test_a_shadow_comes_and_goes(store: AdapterStore) -> None:
    shadow = start_shadow(store, "two", generate=True)
    assert now(store).shadow == shadow
    assert shadow.generate
    with pytest.raises(InvalidRequest, match="no canary runs"):
        promote(store)
    start_canary(store, "two")
    assert now(store).shadow is None, "what serves some requests is no shadow"
    with pytest.raises(InvalidRequest, match="bank two is the canary"):
        start_shadow(store, "two")
    other = start_shadow(store, "three")
    promote(store)
    assert now(store).shadow == other
    rollback(store, "three")
    assert now(store).shadow is None
    with pytest.raises(InvalidRequest, match="no shadow runs"):
        stop_shadow(store)


def test_a_collection_keeps_canary_and_shadow_and_their_counts(memory: AdapterStore) -> None:
    canary, shadow = start_canary(memory, "two"), start_shadow(memory, "three")
    for id in (canary.id, shadow.id, "0123456789ab"):
        memory.put(f"trials/{id}/replica.json", b"{}")
    assert set(collect(memory, keep=0).kept) == {"zero", *VERSIONS}
    kept = {f"trials/{id}/replica.json" for id in (canary.id, shadow.id)}
    assert {info.key for info in memory.list("trials/")} == kept
    stop_canary(memory)
    stop_shadow(memory)
    assert set(collect(memory, keep=0).versions) == {"two", "three"}
    assert {info.key for info in memory.list("trials/")} == {f"trials/{canary.id}/replica.json"}
    start_canary(memory, "zero")
    assert not collect(memory, keep=0).versions


def test_nothing_is_changed_while_garbage_is_collected(memory: AdapterStore) -> None:
    told: list[str] = []

    def meanwhile(done: int, total: int) -> None:
        for change in (
            lambda: start_canary(memory, "one"),
            lambda: start_shadow(memory, "one"),
            lambda: promote(memory),
        ):
            with pytest.raises(Conflict, match="garbage is being collected") as refused:
                change()
            told.append(refused.value.message)

    collect(memory, keep=0, progress=meanwhile)
    assert told


def test_a_pointer_of_before_is_read_and_one_without_a_canary_is_as_it_was(memory: AdapterStore) -> None:
    raw = memory.get("current.json").data
    assert set(json.loads(raw)) == {"version", "previous", "manifest_sha256", "published"}
    memory.put("current.json", raw.replace(b"{", b'{\n  "pinned": [],\n  "collecting": null,', 1))
    assert (now(memory).canary, now(memory).shadow, now(memory).canary_end) == (None, None, None)
    start_canary(memory, "two", promote_after_hours=2.5)
    assert Pointer.model_validate_json(memory.get("current.json").data) == now(memory)


def test_of_many_writers_at_once_each_sees_what_the_others_did(store: AdapterStore, tmp_path: Path) -> None:
    """Whatever the order, each change that went through was made to a state in which it may be made."""
    bank = write_bank(tmp_path / "other", seed=5)
    uri = store.uri

    def attempt(change: Callable[[AdapterStore], object]) -> str:
        try:
            change(open_store(uri))
        except (Conflict, InvalidRequest, BankError) as error:
            return type(error).__name__
        return "done"

    def alarm(store: AdapterStore) -> object:
        canary = now(store).canary
        return None if canary is None else roll_back_canary(store, canary.id, "errors")

    changes: list[Callable[[AdapterStore], object]] = [
        lambda store: start_canary(store, "two"),
        promote,
        stop_canary,
        rollback,
        lambda store: start_shadow(store, "three"),
        lambda store: publish(store, bank, version="other"),
        alarm,
    ]
    with ThreadPoolExecutor(len(changes)) as pool:
        for _ in range(3):
            list(pool.map(attempt, changes))
            after = now(store)
            assert after.version in {"zero", "one", "two", "other"}
            assert after.canary is None or after.canary.version != after.version
            assert after.shadow is None or after.shadow.version != after.version
            assert after.version in {bank.version for bank in list_versions(store)}


def test_of_two_replicas_that_see_an_alarm_one_rolls_back(memory: AdapterStore) -> None:
    canary = start_canary(memory, "two")
    state = pointer.read_free(memory)
    assert state is not None
    assert roll_back_canary(memory, canary.id, "first") is not None
    with pytest.raises(Conflict):  # a replica that read the pointer before
        pointer.replace(memory, state, pointer.without_canary(state[0], "rolled_back", "second"))
    assert roll_back_canary(memory, canary.id, "second") is None
    end = now(memory).canary_end
    assert end is not None
    assert end.reason == "first"
