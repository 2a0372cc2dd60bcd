"""An adapter's way into the slots of several workers: one file in memory that outlives them all, and is then gone."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
import torch

from dlp_core.adapter.weights import Adapter, LoRAWeights
from dlp_core.errors import AdapterRefused
from dlp_core.fusion.packed import Packed, Shape, place
from dlp_core.vllm.arrivals import COPYING
from dlp_core.vllm.device import RemoteDevice

SHAPES = {"model.layers.0.self_attn.q_proj": (12, 20), "model.layers.0.mlp.down_proj": (30, 12)}
PATHS = list(SHAPES)


def adapter(*paths: str) -> Adapter:
    modules = {
        path: LoRAWeights(torch.randn(3, SHAPES[path][0]), torch.randn(SHAPES[path][1], 3), 2.0) for path in paths
    }
    return Adapter("mine", None, modules)


class Workers:
    """Two workers, of which the second reads the file after the first has answered or failed."""

    def __init__(self, *answers: Any) -> None:
        self.answers = answers
        self.buffers: list[torch.Tensor] = []

    async def call(self, method: str, slot: int, path: str, elements: int, shapes: Sequence[Sequence[Any]]) -> Any:
        self.asked, self.shapes = (method, slot), shapes
        assert len(files_in_memory()) == 1
        for answer in self.answers:
            await asyncio.sleep(0)
            self.buffers.append(torch.from_file(path, shared=False, size=elements, dtype=torch.float32))
            if isinstance(answer, Exception):
                raise answer
        return list(self.answers)


def files_in_memory() -> list[str]:
    """Those that this process has open."""
    return [name for fd in os.listdir("/proc/self/fd") if "memfd:adapter" in (name := _target(fd))]


def _target(fd: str) -> str:
    with suppress(FileNotFoundError):  # that of the listing itself
        return os.readlink(f"/proc/self/fd/{fd}")
    return ""


@pytest.fixture
def loop() -> Any:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_every_worker_maps_the_adapter_and_keeps_it_after_the_file_is_gone(loop: asyncio.AbstractEventLoop) -> None:
    workers = Workers(None, None)
    device = RemoteDevice(workers.call, loop, SHAPES, torch.float32)
    packed = device.pack(adapter(*PATHS))
    assert device.place(5, packed) == packed.nbytes
    assert workers.asked == ("dlp_place", 5)
    for buffer in workers.buffers:
        modules = place(Packed(buffer, tuple(Shape(*shape) for shape in workers.shapes)), torch.device("cpu")).modules
        ours = place(packed, torch.device("cpu")).modules
        assert all(torch.equal(modules[path].b_RO, ours[path].b_RO) for path in PATHS)
    assert files_in_memory() == []


class SlowWorkers(Workers):
    """Two that copy at different paces: a look at a slot answers what is in `looks`, one after the other."""

    def __init__(self, *looks: tuple[str | None, str | None]) -> None:
        super().__init__(COPYING, COPYING)
        self._looks = list(looks)

    async def call(self, method: str, slot: int, *args: Any) -> Any:
        if method == "dlp_place":
            return await super().call(method, slot, *args)
        assert (method, slot) == ("dlp_placed", 5)
        assert len(files_in_memory()) == 1, "they may still read it"
        return list(self._looks.pop(0))

    @property
    def done(self) -> bool:
        return not self._looks


def test_an_adapter_is_placed_once_every_worker_has_copied_it(loop: asyncio.AbstractEventLoop) -> None:
    workers = SlowWorkers((COPYING, COPYING), (None, COPYING), (None, None))
    device = RemoteDevice(workers.call, loop, SHAPES, torch.float32)
    packed = device.pack(adapter(*PATHS))
    assert device.place(5, packed) == packed.nbytes
    assert workers.done
    assert files_in_memory() == []


def test_a_copy_that_fails_says_why_once_no_worker_copies_any_more(loop: asyncio.AbstractEventLoop) -> None:
    workers = SlowWorkers(("no memory", COPYING), (None, COPYING), (None, None))
    device = RemoteDevice(workers.call, loop, SHAPES, torch.float32)
    with pytest.raises(RuntimeError, match="no memory"):
        device.place(5, device.pack(adapter(*PATHS)))
    assert workers.done
    assert files_in_memory() == []


def test_a_rank_above_that_of_the_graphs_is_refused_with_both(loop: asyncio.AbstractEventLoop) -> None:
    RemoteDevice(Workers().call, loop, SHAPES, torch.float32, max_rank=3).pack(adapter(*PATHS))
    limited = RemoteDevice(Workers().call, loop, SHAPES, torch.float32, max_rank=2)
    with pytest.raises(AdapterRefused, match=r"'mine' has rank 3 in .*ranks up to 2.*engine\.vllm\.eager"):
        limited.pack(adapter(*PATHS))


@pytest.mark.parametrize("answers", [("disk is full", None), (None, "disk is full"), (RuntimeError("disk is full"),)])
def test_a_load_that_fails_says_why_and_leaves_nothing(loop: asyncio.AbstractEventLoop, answers: tuple[Any]) -> None:
    device = RemoteDevice(Workers(*answers).call, loop, SHAPES, torch.float32)
    with pytest.raises(RuntimeError, match="disk is full"):
        device.place(0, device.pack(adapter(*PATHS)))
    assert files_in_memory() == []


def test_modules_that_take_no_adapters_are_named(loop: asyncio.AbstractEventLoop) -> None:
    some = {PATHS[0]: SHAPES[PATHS[0]]}
    limited = RemoteDevice(Workers().call, loop, some, torch.float32, targets=["q_proj"])
    limited.pack(adapter(PATHS[0]))
    with pytest.raises(AdapterRefused, match=r"'mine' targets down_proj, and engine\.vllm\.targets has q_proj alone"):
        limited.pack(adapter(*PATHS))
    with pytest.raises(AdapterRefused, match=r"'mine' targets 'model.*\.down_proj', which is not a layer"):
        RemoteDevice(Workers().call, loop, some, torch.float32).pack(adapter(*PATHS))
