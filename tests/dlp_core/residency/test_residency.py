"""Moving adapters into slots: single-flight, cancellation, failure, more adapters than slots."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from contextvars import ContextVar
from pathlib import Path

import pytest
import torch

from dlp_core.adapter.weights import Adapter, read_adapter
from dlp_core.errors import AdapterRefused, AdapterUnavailable, InvalidRequest, UnknownModel
from dlp_core.fusion.layers import Fusion, install
from dlp_core.residency.movement import Residency
from dlp_core.residency.sources import FolderSource
from tests.support.tiny import peft_adapter, tiny_llama
from tests.support.waiting import HANG_S, async_wait_for


class SlowSource(FolderSource):
    """Local folders whose reads can be blocked, counted and made to fail."""

    def __init__(self, folders: dict[str, Path]) -> None:
        super().__init__(folders)
        self.open = threading.Event()
        self.open.set()
        self.reads: Counter[str] = Counter()
        self.errors: dict[str, Exception] = {}

    def load(self, name: str) -> Adapter:
        self.reads[name] += 1
        assert self.open.wait(HANG_S)
        if name in self.errors:
            raise self.errors[name]
        return super().load(name)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {name: peft_adapter(root / name, seed, r=2) for seed, name in enumerate("abcdef")}


@pytest.fixture
def source(folders: dict[str, Path]) -> SlowSource:
    return SlowSource(folders)


@pytest.fixture
def fusion() -> Fusion:
    return install(tiny_llama())


async def test_many_requests_for_one_adapter_read_it_once(source: SlowSource, fusion: Fusion) -> None:
    residency = Residency(source, fusion, 2)
    source.open.clear()

    async def use() -> int:
        async with residency.pinned(["a"]) as pins:
            return pins["a"].slot

    users = [asyncio.create_task(use()) for _ in range(20)]
    await async_wait_for(lambda: source.reads, "read")
    assert residency.resident == []
    source.open.set()
    assert set(await asyncio.gather(*users)) == {0}
    assert source.reads == {"a": 1}
    assert residency.resident == ["a"]
    assert residency.pinned_count == 0


async def test_cancelling_a_waiter_does_not_affect_the_others(source: SlowSource, fusion: Fusion) -> None:
    residency = Residency(source, fusion, 1)
    source.open.clear()

    async def use() -> str:
        async with residency.pinned(["a"]):
            return "served"

    first, second = asyncio.create_task(use()), asyncio.create_task(use())
    await async_wait_for(lambda: source.reads, "read")
    first.cancel()
    await asyncio.sleep(0)
    source.open.set()
    assert await second == "served"
    with pytest.raises(asyncio.CancelledError):
        await first
    assert source.reads == {"a": 1}
    assert residency.pinned_count == 0


async def test_a_resident_adapter_serves_while_another_loads(source: SlowSource, fusion: Fusion) -> None:
    residency = Residency(source, fusion, 2)
    async with residency.pinned(["a"]):
        pass
    source.open.clear()

    async def use_b() -> None:
        async with residency.pinned(["b"]):
            pass

    waiting = asyncio.create_task(use_b())
    await async_wait_for(lambda: source.reads["b"], "read")
    async with asyncio.timeout(HANG_S), residency.pinned(["a"]) as pins:
        assert pins["a"].slot == 0
    assert not waiting.done()
    source.open.set()
    await waiting


async def test_more_adapters_than_slots_are_served_in_turn(source: SlowSource, fusion: Fusion) -> None:
    residency = Residency(source, fusion, 2)

    async def use(*names: str) -> tuple[str, ...]:
        async with residency.pinned(names) as pins:
            assert len({pin.slot for pin in pins.values()}) == len(names)
            await asyncio.sleep(0.001)
        return names

    sets = [("a", "b"), ("c",), ("d", "e"), ("f",), ("a", "f"), ("b", "c")] * 5
    async with asyncio.timeout(HANG_S):
        assert await asyncio.gather(*(use(*names) for names in sets)) == sets
    assert residency.pinned_count == 0
    assert len(residency.resident) == 2


async def test_a_failed_load_raises_in_every_waiter_and_can_be_retried(source: SlowSource, fusion: Fusion) -> None:
    residency = Residency(source, fusion, 1)
    source.errors["a"] = AdapterUnavailable("adapter 'a': the store is down")

    async def use(name: str) -> None:
        async with residency.pinned([name]):
            pass

    results = await asyncio.gather(use("a"), use("a"), return_exceptions=True)
    assert [type(result) for result in results] == [AdapterUnavailable, AdapterUnavailable]
    assert residency.pinned_count == 0
    await use("b")
    source.errors.clear()
    await use("a")
    assert residency.resident == ["a"]


async def test_an_unexpected_error_becomes_a_typed_one(source: SlowSource, fusion: Fusion) -> None:
    residency = Residency(source, fusion, 1)
    source.errors["a"] = OSError("no space left")
    with pytest.raises(AdapterUnavailable, match=r"'a' could not be loaded \(no space left\)"):
        async with residency.pinned(["a"]):
            pass


async def test_an_adapter_of_another_model_is_refused_and_leaves_the_slot_free(
    source: SlowSource, tmp_path: Path
) -> None:
    deep = tiny_llama(layers=1)
    residency = Residency(source, install(deep), 1)
    with pytest.raises(AdapterRefused, match="not a layer of the base model that LoRA is served on"):
        async with residency.pinned(["a"]):
            pass
    assert residency.resident == []
    assert residency.pinned_count == 0


async def test_unknown_names_and_sets_beyond_the_slots_are_refused(source: SlowSource, fusion: Fusion) -> None:
    residency = Residency(source, fusion, 2)
    with pytest.raises(UnknownModel, match="no adapter 'zzz'"):
        async with residency.pinned(["a", "zzz"]):
            pass
    with pytest.raises(InvalidRequest, match="3 adapters"):
        async with residency.pinned(["a", "b", "c"]):
            pass
    assert source.reads == {}
    assert residency.pinned_count == 0


async def test_loads_are_reported(source: SlowSource, fusion: Fusion) -> None:
    loads: list[tuple[str, str, float]] = []
    residency = Residency(source, fusion, 1, on_load=lambda name, tier, seconds: loads.append((name, tier, seconds)))
    for name in ("a", "b", "a"):
        async with residency.pinned([name]):
            pass
    assert [(name, tier) for name, tier, _ in loads] == [
        ("a", "host"), ("a", "device"), ("b", "host"), ("b", "device"), ("a", "device")
    ]  # fmt: skip
    assert all(seconds > 0 for _, _, seconds in loads)
    assert source.reads == {"a": 1, "b": 1}, "the second time it came from host memory"


async def test_host_memory_is_bounded_by_bytes(source: SlowSource, fusion: Fusion) -> None:
    one = fusion.pack(source.load("a")).nbytes
    source.reads.clear()
    residency = Residency(source, fusion, 1, host_bytes=2 * one)
    for name in "abcabc":
        async with residency.pinned([name]):
            pass
    assert source.reads == {"a": 2, "b": 2, "c": 2}, "three adapters cycle through room for two"
    assert residency.host_count == 2
    tiny = Residency(source, fusion, 1, host_bytes=one - 1)
    async with tiny.pinned(["a"]):
        assert tiny.host_count == 0


async def test_pinned_memory_counts_as_torch_rounds_it(
    source: SlowSource, fusion: Fusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda _: True)
    packed = fusion.pack(source.load("a"))
    assert packed.host_bytes // 2 < packed.nbytes < packed.host_bytes, "not a power of two itself"
    assert packed.host_bytes & (packed.host_bytes - 1) == 0
    residency = Residency(source, fusion, 1, host_bytes=2 * packed.nbytes)
    for name in "ab":
        async with residency.pinned([name]):
            pass
    assert residency.host_count == 1


async def test_slots_are_bounded_by_bytes(source: SlowSource, fusion: Fusion) -> None:
    size = source.size("a")
    residency = Residency(source, fusion, 4, slot_bytes=2 * size)
    for name in "abc":
        async with residency.pinned([name]):
            pass
    assert residency.resident == ["b", "c"]
    assert len(fusion._residents) == 2
    with pytest.raises(InvalidRequest, match="bytes of adapters"):
        async with residency.pinned(["a", "b", "c"]):
            pass


async def test_kept_adapters_stay_until_others_are_kept(source: SlowSource, fusion: Fusion) -> None:
    residency = Residency(source, fusion, 2)
    await residency.keep(["a"])
    for name in "bcd":
        async with residency.pinned([name]):
            assert "a" in residency.resident
    await residency.keep(["b"])
    source.errors["e"] = AdapterUnavailable("the store is down")
    with pytest.raises(AdapterUnavailable):
        await residency.keep(["e"])
    for name in "cd":
        async with residency.pinned([name]):
            assert residency.resident == ["b", name]
    assert residency.can_hold(["c"])
    assert not residency.can_hold(["c", "d"])
    with pytest.raises(InvalidRequest, match="the 1 that this server always keeps"):
        async with residency.pinned(["c", "d"]):
            pass
    await residency.keep([])
    await residency.preload(["a", "c"])
    assert residency.resident == ["a", "c"]
    assert residency.pinned_count == 0


def test_a_folder_source_identifies_bytes_not_paths(folders: dict[str, Path], tmp_path: Path) -> None:
    other = peft_adapter(tmp_path / "a", 0, r=2)
    source = FolderSource({"x": folders["a"], "y": other, "z": folders["b"]})
    assert source.digest("x") == source.digest("y")
    assert source.digest("x") != source.digest("z")
    assert read_adapter(other, name="y").rank == 2


async def test_a_load_runs_in_the_context_of_the_request_it_is_for(source: SlowSource, fusion: Fusion) -> None:
    """Even when another request triggered it, by releasing its slot."""
    caller: ContextVar[str] = ContextVar("caller")
    loads: list[tuple[str, str, str]] = []
    residency = Residency(source, fusion, 1, on_load=lambda name, tier, _: loads.append((name, tier, caller.get())))

    async def request(who: str, adapter: str, *, leave: asyncio.Event) -> None:
        caller.set(who)
        async with residency.pinned([adapter]):
            await leave.wait()

    first, second = asyncio.Event(), asyncio.Event()
    tasks = [
        asyncio.create_task(request("one", "a", leave=first)),
        asyncio.create_task(request("two", "b", leave=second)),
    ]
    await async_wait_for(lambda: residency.demand == 2 and len(loads) == 2, "second request")  # it waits for the slot
    first.set()
    second.set()
    await asyncio.gather(*tasks)
    assert loads == [("a", "host", "one"), ("a", "device", "one"), ("b", "host", "two"), ("b", "device", "two")]


async def test_demand_and_wait_count_requests_only(source: SlowSource, fusion: Fusion) -> None:
    residency = Residency(source, fusion, 3)
    await residency.keep(["a"])
    assert (residency.demand, residency.max_wait_s) == (0, 0)
    async with residency.pinned(["a", "b"]):
        assert (residency.demand, residency.max_wait_s) == (1 / 2, 0)
        source.open.clear()
        began = time.perf_counter()
        waiting = asyncio.create_task(residency.preload(["c"]))
        await async_wait_for(lambda: residency.max_wait_s > 0.03, "wait")
        assert residency.demand == 1
        assert residency.max_wait_s < time.perf_counter() - began
        waiting_in_line = asyncio.create_task(residency.preload(["d"]))
        await asyncio.sleep(0)
        assert residency.demand == 3 / 2
        waiting_in_line.cancel()
        source.open.set()
        await waiting
    assert (residency.demand, residency.max_wait_s) == (0, 0)
