"""An adapter's copy to a CUDA device, with streams that only note what is asked of them."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from dlp_core.adapter.weights import LoRAWeights
from dlp_core.fusion.packed import Packed, Resident, pack
from dlp_core.fusion.reference import Delta
from dlp_core.vllm import arrivals
from dlp_core.vllm.arrivals import Arrivals
from tests.support.op_bank import CPU
from tests.support.waiting import wait_for

PIECE = 64


class Device:
    """What was asked of the device, in order."""

    def __init__(self, patches: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.steps = Stream(self, "steps")
        patches.setattr(torch.cuda, "Stream", lambda device: Stream(self, "copies"))
        patches.setattr(torch.cuda, "Event", lambda: Event(self))
        patches.setattr(torch.cuda, "current_stream", lambda device: self.steps)
        patches.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        patches.setattr(torch.cuda, "device", lambda device: nullcontext())
        patches.setattr(arrivals, "_PIECE", PIECE)
        patches.setattr(arrivals, "_pinned", lambda size: torch.zeros(size, dtype=torch.uint8))
        self.arrivals = Arrivals(CPU)


class Stream:
    def __init__(self, device: Device, name: str) -> None:
        self._device = device
        self.name = name

    def wait_stream(self, other: Stream) -> None:
        self._device.asked.append(f"{self.name} wait for {other.name}")

    def synchronize(self) -> None:
        self._device.asked.append(f"{self.name} done")


class Event:
    def __init__(self, device: Device) -> None:
        self._device = device
        self._number = 0

    def synchronize(self) -> None:
        self._device.asked.append(f"copy {self._number} out of it done")

    def record(self) -> None:
        self._number += 1
        self._device.asked.append("copy")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


def packed(d_in: int = 24, dtype: torch.dtype = torch.float32) -> Packed:
    delta = Delta(LoRAWeights(torch.randn(3, d_in), torch.randn(5, 3), 2.0))
    return pack({"q_proj": delta}, {"q_proj": d_in}, dtype=dtype, pinned=False)


def arrived(device: Device, slot: int) -> Resident:
    found: list[Any] = []
    wait_for(lambda: found.append(device.arrivals.take(slot)) or found[-1] is not None, "the adapter")
    resident = found[-1]
    assert isinstance(resident, Resident)
    return resident


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d_in", [1, 24, 200], ids=["less than a piece", "some", "many"])
def test_an_adapter_of_any_size_arrives_as_it_was(device: Device, d_in: int, dtype: torch.dtype) -> None:
    sent = packed(d_in, dtype)
    device.arrivals.start(3, lambda: sent)
    resident = arrived(device, 3)
    assert torch.equal(resident.buffer.view(torch.uint8), sent.buffer.view(torch.uint8))
    assert resident.buffer.data_ptr() != sent.buffer.data_ptr()
    assert {path: (*factors.a_RD.shape, *factors.b_RO.shape) for path, factors in resident.modules.items()} == {
        "q_proj": (3, d_in, 3, 5)
    }
    assert resident.rank == 3


def test_copies_wait_for_the_steps_that_may_read_their_memory_and_for_their_buffers(device: Device) -> None:
    device.arrivals.start(0, lambda: packed(24))
    arrived(device, 0)
    size = packed(24).nbytes
    pieces = -(-size // PIECE)
    assert pieces > 4
    assert device.asked[0] == "copies wait for steps"
    assert device.asked[-1] == "copies done"
    turns = [f"copy {number // 2} out of it done" for number in range(pieces)]
    assert device.asked[1:-1] == [word for turn in turns for word in (turn, "copy")]


def test_an_adapter_is_not_there_before_it_has_arrived_and_then_is_taken_once(device: Device) -> None:
    go_on = threading.Event()

    def load() -> Packed:
        go_on.wait()
        return packed()

    device.arrivals.start(1, load)
    device.arrivals.start(2, packed)
    assert device.arrivals.expects(1)
    assert device.arrivals.take(1) is None
    assert device.arrivals.take(2) is None, "one after the other"
    go_on.set()
    assert arrived(device, 1).rank == arrived(device, 2).rank == 3
    assert not device.arrivals.expects(1)


def test_what_kept_an_adapter_from_arriving_is_told_and_the_next_one_arrives(device: Device) -> None:
    def load() -> Packed:
        raise MemoryError("none left")

    device.arrivals.start(1, load)
    with pytest.raises(MemoryError, match="none left"):
        wait_for(lambda: device.arrivals.take(1) is not None, "an error")
    assert not device.arrivals.expects(1)
    device.arrivals.start(1, packed)
    assert arrived(device, 1).rank == 3
