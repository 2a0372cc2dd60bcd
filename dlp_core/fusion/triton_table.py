"""Where the factors of the adapters in the slots lie: a table on the device, which the kernels of `triton` read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from dlp_core.fusion.packed import Resident

_STEP = 64
"""Slots and modules that a table grows by."""


class Table:
    """int64 [slots, modules, 4]: (address of A, address of B, rank, 1 if the last row is a bias)."""

    def __init__(
        self,
        device: torch.device,
        slots: int = _STEP,
        modules: Mapping[str, int] | None = None,
        groups: Collection[tuple[str, ...]] = (),
    ) -> None:
        """With `modules`, mapped to the widths of their inputs, the table never moves, because CUDA graphs keep its
        address; `groups` are then those that `group` will be asked for. Without, it grows with what adapters need."""
        self.modules: dict[str, int] = {}
        """Module path to its row in a slot. No kernel is launched for a module that has none."""
        self._fixed = modules is not None
        self._device = device
        self._widths: dict[str, int] = {}
        self._groups: dict[tuple[str, ...], tuple[tuple[str, ...], Tensor]] = {}
        self._written: WeakValueDictionary[int, Resident] = WeakValueDictionary()
        for path, width in (modules or {}).items():
            self._add(path, width)
        for group in groups:
            self.group(group)  # now: its copy to the device cannot be captured
        self.rows = _zeros(slots, len(self.modules) if self._fixed else _STEP, device)

    def group(self, siblings: tuple[str, ...]) -> tuple[tuple[str, ...], Tensor]:
        """The modules of a group that are in the table, and their rows in it."""
        if siblings not in self._groups:
            members = tuple(path for path in siblings if path in self.modules)
            rows = torch.tensor([self.modules[path] for path in members], dtype=torch.int32, device=self._device)
            self._groups[siblings] = members, rows
        return self._groups[siblings]

    def width(self, siblings: tuple[str, ...]) -> int:
        """Columns of A, for modules whose inputs are token ids."""
        return next(self._widths[path] for path in siblings if path in self._widths)

    def update(self, active: Mapping[int, Resident], copy: Callable[[Tensor, Tensor], None]) -> None:
        """Write what has changed in these slots; `copy(source, target)` copies to the device.

        Raises RuntimeError if a table that may not move has no room for it.
        """
        changed = self._changed(active)
        if not changed:
            return
        self._make_room(changed)
        for slot, resident in self._changed(active).items():
            rows = [[0, 0, 0, 0]] * self.rows.shape[1]
            for path, (a_RD, b_RO, has_bias) in resident.modules.items():
                rows[self.modules[path]] = [a_RD.data_ptr(), b_RO.data_ptr(), a_RD.shape[0], int(has_bias)]
            copy(torch.tensor(rows), self.rows[slot])
            self._written[slot] = resident

    def _make_room(self, changed: Mapping[int, Resident]) -> None:
        unknown = {
            path: factors.a_RD.shape[1]
            for resident in changed.values()
            for path, factors in resident.modules.items()
            if path not in self.modules
        }
        slots, modules, _ = self.rows.shape
        if self._fixed and (unknown or max(changed) >= slots):
            what = f"slot {max(changed)}" if max(changed) >= slots else f"module {min(unknown)!r}"
            raise RuntimeError(f"{what} is beyond the table that CUDA graphs read, of {slots} slots")
        for path, width in unknown.items():
            self._add(path, width)
        if max(changed) >= slots or len(self.modules) > modules:
            slots, modules = max(slots, _round_up(max(changed) + 1)), max(modules, _round_up(len(self.modules)))
            self.rows = _zeros(slots, modules, self._device)
            self._written.clear()

    def _changed(self, active: Mapping[int, Resident]) -> dict[int, Resident]:
        return {slot: resident for slot, resident in active.items() if self._written.get(slot) is not resident}

    def _add(self, path: str, width: int) -> None:
        self.modules[path] = len(self.modules)
        self._widths[path] = width
        self._groups.clear()


def _zeros(slots: int, modules: int, device: torch.device) -> Tensor:
    """Writable in any mode, even if a batch in inference mode makes it."""
    with torch.inference_mode(False):
        return torch.zeros(slots, modules, 4, dtype=torch.int64, device=device)


def _round_up(number: int) -> int:
    return -(-number // _STEP) * _STEP
